"""Code that every command shares: begin, tell errors in a line, let one process write to a folder.

Nothing here imports torch, so that help comes at once.
"""

from __future__ import annotations

import difflib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress

from hydra.conf import HydraConf
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    OmegaConfBaseException,
)

from ldm_lightning.config import register_resolvers
from ldm_lightning.runs.run_folder import RunFolder
from ldm_lightning.storage.home import ensure_home, expanded_override
from ldm_lightning.storage.small_files import SmallFileError
from ldm_lightning.utils.errors import ContactLostError, OutOfMemory, error_line, is_out_of_memory
from ldm_lightning.utils.launch import check_environment, launched
from ldm_lightning.utils.terminal import prepare_streams

log = logging.getLogger(__name__)

EXPECTED_ERRORS = (
    HydraException,
    OmegaConfBaseException,
    ValueError,
    OSError,
    FloatingPointError,
    ContactLostError,
    OutOfMemory,
)
"""What wrong input and a full disk lead to; anything else is a mistake of ours and keeps its
traceback."""


SMALLER_BATCHES = "Lower batch_size or data.val_batch_size, or give precision=bf16."
"""What commands that do not train can do about memory."""


def run_entry_point(command: Callable[[], None]) -> None:
    """Run a command as the only work of this process; it ends with code 1 on wrong input.

    Args:
        command: Hydra's wrapper of the command, which reads ``sys.argv``.
    """
    prepare_streams()
    register_resolvers()
    with handle_user_errors():
        sys.argv[1:] = map(expanded_override, sys.argv[1:])  # the processes it starts get them too
        ensure_home()
        command()


def quiet_lightning() -> None:
    """Silence what Lightning says on every run that is of no use to anyone who trains."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).propagate = False  # it has a handler of its own
        logging.getLogger(name).setLevel(logging.WARNING)
    # What Lightning itself should have replaced, and advice that is wrong for data that are drawn
    # instead of read.
    warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
    warnings.filterwarnings("ignore", ".*does not have many workers")
    # Of DDP, about 1x1 kernels, whose layouts are one and the same whatever their strides say.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    # Of trainer=fsdp, about networks whose output is then changed in place; no output here is.
    warnings.filterwarnings("ignore", ".*returned a view tensor")


def config_dir_options(runtime: HydraConf) -> list[str]:
    """``--config-dir`` and its folder, for a process that is to find the same configurations."""
    return [
        word
        for source in runtime.runtime.config_sources
        if source.provider == "command-line"
        for word in ("--config-dir", source.path)
    ]


@contextmanager
def handle_user_errors() -> Iterator[None]:
    """End the process with code 1 and one message on an error that its user can act on.

    Of several processes each says which one it is.

    Entry points need it twice: around Hydra, for what it finds while composing, and in Hydra's job,
    because Hydra prints the whole command line before an error leaves it.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises, instead of printing in its own words
    whose = ""
    try:
        check_environment()
        if not (here := launched()).is_alone:
            whose = f"Process {here.rank}: "
        yield
    except EXPECTED_ERRORS as error:
        log.debug("Traceback:", exc_info=True)  # hydra.verbose=true shows it
        log.error("%s%s", whose, error_text(error))
        sys.exit(1)
    except Exception as error:
        if is_out_of_memory(error):  # not in a training, which says more
            log.debug("Traceback:", exc_info=True)
            log.error("%sOut of memory: %s %s", whose, error_line(error), SMALLER_BATCHES)
            sys.exit(1)
        if whose:  # the traceback that follows does not say
            log.error("%s%s", whose, error_line(error))
        raise


def check_alone(command: str, *, instead: str) -> None:
    """Refuse to run a command as one of several processes, each of which would do all of it.

    Raises:
        ValueError: Saying what to start instead.
    """
    here = launched()
    if not here.is_alone:
        raise ValueError(
            f"{here.num_processes} processes were started, but {command} is one: {instead}"
        )


def error_text(error: BaseException) -> str:
    """Message for the user: the error itself, without what Hydra wraps around it."""
    cause = error.__cause__
    if isinstance(error, InstantiationException) and isinstance(cause, EXPECTED_ERRORS):
        return error_text(cause)
    if isinstance(error, MissingConfigException) and error.options:
        missing = error.missing_cfg_file
        if missing == "hydra/sweeper/optuna":
            return "A search needs packages that are missing: pip install 'ldm_lightning[search]'."
        return f"There is no {missing!r}; choose from {', '.join(sorted(error.options))}."
    if isinstance(cause, (ConfigAttributeError, ConfigKeyError)):
        known = cause.parent_node if isinstance(cause.parent_node, DictConfig) else ()
        return misspelled(str(cause.full_key), map(str, known))
    if isinstance(error, (ContactLostError, OutOfMemory)):
        return str(error)
    lines = str(error).splitlines() or [""]
    if isinstance(error, InterpolationResolutionError):
        return lines[0].partition("raised while resolving interpolation: ")[2] or lines[0]
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return "\n".join(lines)
    return error_line(error)


def misspelled(key: str, known: Iterable[str]) -> str:
    """The message about a key that does not exist."""
    names = sorted(known)
    near = difflib.get_close_matches(key.rpartition(".")[2], names, n=1)
    hint = f"There are: {', '.join(names)}." if names else f"To add it, write +{key}=VALUE."
    hint = f"Did you mean {near[0]!r}?" if near else hint
    return f"Nothing reads the key {key!r}; is it misspelled? {hint}"


@contextmanager
def run_lock(run_folder: RunFolder, *, is_first: bool) -> Iterator[None]:
    """Keep other commands out of a folder.

    Everything that looks at what the folder holds, or writes to it, belongs into the block.

    Args:
        run_folder: What is written to.
        is_first: Whether this is the first of its processes, which holds the folder for all.

    Raises:
        ValueError: If another command is writing to it.
    """
    with run_folder.only_writer() if is_first else nullcontext():
        yield


@contextmanager
def record_end(run_folder: RunFolder, *, is_first: bool) -> Iterator[None]:
    """Note in a folder's summary what ended this command too early.

    Args:
        run_folder: Whose ``summary.json`` it is.
        is_first: Whether this is the one of its processes that writes it.
    """
    try:
        yield
    except BaseException as error:
        if is_first:
            with suppress(SmallFileError):  # a damaged summary is no reason to hide the error
                _note_end(run_folder, error)
        raise


def _note_end(run_folder: RunFolder, error: BaseException) -> None:
    # Training says itself how it ended, unless it only lost contact with the process that failed;
    # and what was refused is as it was.
    state = run_folder.read_summary().get("state", "running")
    if state == "running" or (state == "failed" and isinstance(error, ContactLostError)):
        stopped = isinstance(error, KeyboardInterrupt)
        reason = {} if stopped else {"reason": error_text(error)}
        run_folder.update_summary({"state": "interrupted" if stopped else "failed", **reason})

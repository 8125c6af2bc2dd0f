"""Checkpoints: written whole or not at all, and read without running anything they carry.

Most are one file. That of a run whose weights are sharded over processes is a file without them,
which is only replaced when they are all written, and a folder beside it that holds them:
``last.ckpt`` and ``last.shards``. Both are read alike.
"""

import functools
import pickle
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import CheckpointException

from ldm_lightning.checkpoints.contents import shown
from ldm_lightning.checkpoints.sharded_tensors import (
    check_shards,
    put_back,
    tensors_without_values,
    whole_tensors,
)
from ldm_lightning.storage.files import atomic_writer
from ldm_lightning.utils.errors import CheckpointError

SHARDS = "shards"
"""Key of a checkpoint whose tensors lie in other files: which folder, which files, whose places."""

SHARD_FOLDERS = ("a", "b")
"""Where shards are written in turn, below the folder beside the file."""


def save_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint atomically.

    Raises:
        OSError: If it could not be written, usually because the disk is full. What ``path`` held
            before is still there, unharmed.
    """
    try:
        with atomic_writer(path) as file:
            torch.save(dict(checkpoint), file)
    except (OSError, RuntimeError) as err:
        # torch reports a full disk as a RuntimeError about file positions.
        kept = "The previous checkpoint there is still valid." if path.exists() else ""
        raise OSError(
            f"The checkpoint {path} could not be written ({err}). Most often the disk is full or a "
            f"quota is reached: free some space, then continue with resume=auto. {kept}".rstrip()
        ) from err


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; only tensors and plain values, never code.

    torch does not notice flipped bits inside a tensor, so the checksums that the file carries are
    compared first.

    Raises:
        CheckpointError: If the file is missing, is damaged, or carries pickled code (nothing is
        run).
    """
    path = Path(path)
    return with_shards(load_file(path), path, whole_tensors)


def stored_content(path: Path) -> dict[str, Any]:
    """Read a checkpoint with its tensors on the meta device: names, shapes and types.

    Raises:
        CheckpointError: As ``load_checkpoint`` does; shards are read for their checksums alone.
    """
    return with_shards(load_file(path, device="meta"), path, tensors_without_values)


def stored_step(path: Path) -> int:
    """Update after which a checkpoint was written; a file that has not changed is read once.

    Raises:
        CheckpointError: As ``load_checkpoint`` does, or if it says no update; shards are not read.
    """
    facts = path.stat() if path.is_file() else None
    return _read_step(path, facts and (facts.st_ino, facts.st_mtime_ns, facts.st_size))


@functools.lru_cache(maxsize=16)
def _read_step(path: Path, state: tuple[int, ...] | None) -> int:
    step = load_file(path, device="meta").get("global_step")
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise CheckpointError(f"checkpoint={path} says no update (global_step={step!r}).")
    return step


def with_shards(
    content: dict[str, Any], path: Path, read: Callable[[Path], Mapping[str, Tensor]]
) -> dict[str, Any]:
    """Put the tensors of a sharded checkpoint where they belong; one file is complete already.

    Args:
        content: Of the file, as ``load_file`` returns it; is changed.
        path: Of the file.
        read: Reads the tensors of a folder of shards.

    Raises:
        CheckpointError: If shards are missing or damaged.
    """
    if SHARDS not in content:
        return content
    shards = content.pop(SHARDS)
    try:
        # whatever the file says, nothing else is read
        folder = shards_of(path) / SHARD_FOLDERS[SHARD_FOLDERS.index(shards["folder"])]
        check_shards(folder, {Path(n).name: fact for n, fact in shards["files"].items()}, path)
        tensors = read(folder)
        for name, place in shards["places"].items():
            put_back(content, place, tensors[name])
    except CheckpointError:
        raise
    except PermissionError as err:
        raise CheckpointError(f"checkpoint={path} may not be read: {err}.") from err
    except (Exception, CheckpointException) as err:  # any type, on arbitrary bytes
        raise CheckpointError(
            f"checkpoint={path} is damaged: {type(err).__name__} while reading its shards."
        ) from err
    return content


def shards_of(path: Path) -> Path:
    """The folder beside a sharded checkpoint that holds its tensors."""
    return path.with_suffix(".shards")


def remove_shards(path: Path) -> None:
    """Remove the shards of a checkpoint in whose place there is now a whole one."""
    shutil.rmtree(shards_of(path), ignore_errors=True)


def load_file(path: Path, *, device: str = "cpu") -> dict[str, Any]:
    """Read what the file itself holds; see ``load_checkpoint``.

    Args:
        path: The file.
        device: For its tensors; ``meta`` leaves out their values.

    Raises:
        CheckpointError: If the file is missing, is damaged, or carries pickled code (nothing is
        run).
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint={path} does not exist or is not a file.")
    damaged = f"checkpoint={path} is damaged or is no checkpoint"
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if (member := archive.testzip()) is not None:
                    raise CheckpointError(f"{damaged}: the checksum of {member} is wrong.")
        checkpoint = torch.load(path, weights_only=True, map_location=device)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as err:
        if names := _unsafe_names(path):
            raise CheckpointError(
                f"checkpoint={path} carries pickled code ({', '.join(names)}) and is refused; "
                "nothing in it was run. A checkpoint must hold tensors and plain values only."
            ) from err
        raise CheckpointError(f"{damaged}: its contents cannot be decoded.") from err
    except PermissionError as err:
        raise CheckpointError(f"checkpoint={path} may not be read: permission denied.") from err
    except Exception as err:  # torch raises many types on bytes that are no checkpoint
        raise CheckpointError(
            f"{damaged}: {type(err).__name__} while reading it. It may have been cut off while it "
            "was copied; take last.ckpt or best.ckpt, whichever of them is intact."
        ) from err
    if not isinstance(checkpoint, dict):
        raise CheckpointError(
            f"checkpoint={path} holds a {type(checkpoint).__name__}; expected a dictionary."
        )
    return checkpoint


def _unsafe_names(path: Path) -> list[str]:
    """Names of what a file wants to call when loaded; empty where even that cannot be read."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # as above: any type, on arbitrary bytes
        return []


def check_fits(module: nn.Module, state_dict: Mapping[str, Tensor], path: str | Path) -> None:
    """Say how two architectures differ, if they do.

    Args:
        module: Would receive the weights; not changed.
        state_dict: Weights by name.
        path: Where they come from, for the message.

    Raises:
        CheckpointError: If a name is missing, unexpected or has another shape or type.
    """
    if not isinstance(state_dict, dict):
        raise CheckpointError(f"checkpoint={path} holds no weights but {shown(state_dict)}.")
    own = module.state_dict()
    missing = [name for name in own if name not in state_dict]
    unexpected = [name for name in state_dict if name not in own]
    kept = [name for name in own if name in state_dict]
    for name in kept:
        if not isinstance(state_dict[name], Tensor):
            raise CheckpointError(
                f"checkpoint={path} is damaged: {name} is {shown(state_dict[name])}; expected a "
                "tensor."
            )
    shapes = [
        f"{name} {tuple(state_dict[name].shape)} instead of {tuple(own[name].shape)}"
        for name in kept
        if state_dict[name].shape != own[name].shape
    ]
    types = [
        f"{name} {state_dict[name].dtype} instead of {own[name].dtype}"
        for name in kept
        if state_dict[name].is_floating_point() != own[name].is_floating_point()
    ]
    problems = [
        ("missing", missing),
        ("unexpected", unexpected),
        ("of another shape", shapes),
        ("of another type", types),
    ]
    told = [f"{len(names)} {what} ({first_names(names)})" for what, names in problems if names]
    if told:
        raise CheckpointError(
            f"checkpoint={path} is of another architecture than {type(module).__name__}; tensors: "
            f"{'; '.join(told)}. Use the configuration that it was trained with, or another "
            "checkpoint."
        )


def load_strict(module: nn.Module, state_dict: Mapping[str, Tensor], path: str | Path) -> None:
    """Load weights that fit exactly; otherwise change nothing and say how they differ.

    Args:
        module: Receives the weights; unchanged when they do not fit.
        state_dict: Its weights by name.
        path: Where they come from, for the message.

    Raises:
        CheckpointError: If a name is missing, unexpected or has another shape.
    """
    check_fits(module, state_dict, path)
    module.load_state_dict(state_dict, strict=True)


def first_names(names: list[str], count: int = 3) -> str:
    """Join the first few of many names."""
    return ", ".join(map(str, names[:count])) + (", ..." if len(names) > count else "")


@dataclass(frozen=True)
class TrainedWeights:
    """Weights that a run trained for use, and their kind: averaged (``ema``) or ``raw``."""

    tensors: dict[str, Tensor]
    kind: str


def trained_weights(
    checkpoint: Mapping[str, Any],
    weights: str = "ema",
    *,
    path: str | Path,
    part: str = "autoencoder",
) -> TrainedWeights:
    """Choose the weights of a network from a checkpoint of a run.

    Args:
        checkpoint: As ``load_checkpoint`` returns it.
        weights: ``ema`` takes the moving average where there is one, else the raw weights; ``raw``
            takes the raw weights.
        path: Of the checkpoint, for messages.
        part: The module's attribute that was averaged: ``autoencoder``, or ``model`` in a second
            stage.

    Raises:
        ValueError: If ``weights`` is neither.
        CheckpointError: If there is no such part in the checkpoint.
    """
    if weights not in ("ema", "raw"):
        raise ValueError(f"weights must be 'ema' or 'raw', got {weights!r}.")
    key = "ema" if weights == "ema" and "ema" in checkpoint else "state_dict"
    stored, prefix = checkpoint.get(key), f"{part}."
    if not isinstance(stored, dict) or not all(isinstance(name, str) for name in stored):
        raise CheckpointError(
            f"checkpoint={path} holds no weights: {key} is {shown(stored)}; expected tensors by "
            "name, as a run of ours writes them."
        )
    if key == "ema":
        return TrainedWeights(dict(stored), "ema")
    tensors = {
        name.removeprefix(prefix): tensor
        for name, tensor in stored.items()
        if name.startswith(prefix)
    }
    if not tensors:
        raise CheckpointError(
            f"checkpoint={path} holds no {part}; it was not written by a run of ours."
        )
    return TrainedWeights(tensors, "raw")

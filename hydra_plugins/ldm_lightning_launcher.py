"""Hydra's launcher for ``-m``: every job of a sweep is a process of its own.

Hydra accepts launchers from the package ``hydra_plugins`` alone, and imports all that is there at
every start of every command; so this file holds what Hydra asks for, and ``ldm_lightning.jobs``,
imported when a sweep begins, does the work. Neither imports torch.

In one process, jobs would share environment variables, seeds, W&B runs and torch's global settings,
and the other processes of a DDP job would run the whole sweep again.
"""

from __future__ import annotations

import logging
import shlex
import signal
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus, configure_log
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

if TYPE_CHECKING:
    from ldm_lightning.jobs.sweep.status import Status

log = logging.getLogger(__name__)

OWN = ("hydra.launcher", "hydra/launcher", "hydra.sweep", "hydra/sweep", "hydra.mode", "hydra.run.")
"""What Hydra's overrides begin with that describe the sweep, and not its jobs."""

_FOLDER = "a job's folder is outputs/sweeps/SWEEP_NAME/NUMBER_HASH"
DECIDED_BY_THE_SWEEP = {
    "resume": "a sweep goes on by itself when it is started again with the same sweep_name",
    "output_dir": _FOLDER,
    "hydra.run.dir": _FOLDER,
    "hydra.sweep.subdir": _FOLDER,
}


class JobUnfinishedError(HydraException):
    """A job of a sweep failed, or was ended from outside."""


class EndWithFailure(Callback):
    """End a search whose trials did not all come to their end with code 1; its sweeper ends with 0.

    Attributes:
        unfinished: Folders of the jobs that are not done.
    """

    def __init__(self) -> None:
        self.unfinished: set[Path] = set()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra, after the search has written what it found."""
        if self.unfinished:
            log.error("Trials that are not done: %d.", len(self.unfinished))
            sys.exit(1)


class ProcessLauncher(Launcher):
    """Run jobs as processes; settings are ``hydra.launcher.*``, see conf/hydra/launcher.

    Args:
        module: What a job runs, such as ``ldm_lightning.train``.
        n_jobs: Jobs at a time.
        threads: Threads of each process of a job.
        gpus: ``auto``, or the GPUs that jobs may use; an empty list for none.
        gpus_per_job: GPUs that one job sees.
    """

    def __init__(
        self,
        *,
        module: str,
        n_jobs: int,
        threads: int,
        gpus: str | Sequence[int | str],
        gpus_per_job: int,
    ) -> None:
        self.module = module
        self.n_jobs = n_jobs
        self.threads = threads
        self.gpus = gpus
        self.gpus_per_job = gpus_per_job
        self.at_end = EndWithFailure()

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Check what can be checked before any job is made up; called by Hydra.

        Raises:
            ValueError: Naming the setting and what to give.
        """
        from ldm_lightning.cli import check_alone
        from ldm_lightning.jobs.sweep.resources import Resources, chosen_gpus

        check_alone("a sweep", instead="start it alone; its jobs start the others (trainer=ddp).")
        _check_name(config.sweep_name)
        _check_module(self.module)
        _check_sweeper(config.hydra.sweeper)
        _check_overrides(config.hydra.overrides.hydra)
        self.config = config
        hydra_context.callbacks.callbacks.append(self.at_end)
        self.resources = Resources(
            self.n_jobs, self.threads, chosen_gpus(self.gpus), self.gpus_per_job
        )

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> list[JobReturn]:
        """Run the jobs that are not done; called by Hydra, by some sweepers again and again.

        Args:
            job_overrides: The overrides of each job.
            initial_job_idx: How many jobs were launched before; a job's folder does not depend on
                it.

        Returns:
            One a job, whose value is its ``monitor``.

        Raises:
            ValueError: If an override sets what the sweep decides.
            SystemExit: When all jobs have ended, after Ctrl-C and SIGTERM, and after a job that
                failed; unless a search goes on without it.
        """
        from ldm_lightning.jobs.sweep.job_process import Command
        from ldm_lightning.jobs.sweep.running import run_sweep
        from ldm_lightning.reporting.page.write import write_own_page

        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        for overrides in job_overrides:
            _check_overrides(overrides)
        folder = Path(self.config.hydra.sweep.dir).absolute()
        ended = run_sweep(
            folder,
            job_overrides,
            command=Command(self.module, tuple(_options(self.config))),
            resources=self.resources,
        )
        if self.config.page and not (self.config.dry_run or ended.signal):
            page = folder / "report.html"
            try:
                if ended.started or not page.is_file():
                    write_own_page(folder)
                else:
                    log.info("Page: %s", page)
            except KeyboardInterrupt:  # nothing is lost, so no traceback
                sys.exit(128 + signal.SIGINT)
        if ended.unfinished:
            command = ["python", "-m", self.module, *sys.argv[1:]]
            log.error(
                "Not done: %d of %d jobs. To go on: %s",
                len(ended.unfinished),
                len({status.job.folder for status in ended.statuses}),
                shlex.join(command),
            )
        if ended.signal:
            sys.exit(128 + ended.signal)
        self.at_end.unfinished |= {status.job.folder for status in ended.unfinished}
        if ended.unfinished and self.config.hydra.sweeper._target_.endswith(".BasicSweeper"):
            sys.exit(1)  # nobody asks for values, and all has been said
        return [_returned(status) for status in ended.statuses]


class NoSweep(Launcher):
    """Refuse ``-m`` for commands whose jobs have no folder to be found in again.

    Args:
        command: Which one.
    """

    def __init__(self, *, command: str) -> None:
        self.command = command

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Refuse; called by Hydra.

        Raises:
            ValueError: Saying what to do instead.
        """
        raise ValueError(
            f"-m sweeps train and pipeline, not {self.command}: leave it out, and run "
            f"{self.command} once for each value, such as by a loop of the shell."
        )

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> list[JobReturn]:
        """Never called: ``setup`` refuses."""
        raise AssertionError("a sweep that was refused has jobs")


def _check_name(name: object) -> None:
    if name is None:
        raise ValueError(
            "A sweep needs a name: give sweep_name=NAME, one for all jobs. Its folder is "
            "outputs/sweeps/NAME, and the same name goes on with it."
        )
    if not isinstance(name, (str, int)) or Path(str(name)).name != str(name) or name in ("", ".."):
        raise ValueError(f"sweep_name must be the name of a folder, without a path, got {name!r}.")


def _check_module(module: str) -> None:
    try:
        found = find_spec(module)
    except ModuleNotFoundError:  # of a package that is not there either
        found = None
    if found is None:
        raise ValueError(
            f"hydra.launcher.module={module} does not exist; it is what jobs run, such as "
            "ldm_lightning.train."
        )


def _check_sweeper(sweeper: DictConfig) -> None:
    if sweeper.get("max_batch_size") is not None:
        raise ValueError(
            f"hydra.sweeper.max_batch_size={sweeper.max_batch_size} would leave out jobs behind "
            "one that fails. Leave it out: hydra.launcher.n_jobs says how many run at a time."
        )


def _check_overrides(overrides: Sequence[str]) -> None:
    from ldm_lightning.runs.overrides import key_of

    for override in overrides:
        if (key := key_of(override)) in DECIDED_BY_THE_SWEEP:
            reason = DECIDED_BY_THE_SWEEP[key]
            raise ValueError(f"{override} is not for a sweep: {reason}. Leave it out.")


def _options(config: DictConfig) -> list[str]:
    """The overrides of the command line that count for the jobs' Hydra."""
    from ldm_lightning.cli import config_dir_options

    options = config_dir_options(config.hydra)
    name = config.hydra.job.config_name
    if name not in ("train", "pipeline"):  # a configuration of one's own, given by --config-name
        options += ["--config-name", name]
    overrides = [
        override
        for override in config.hydra.overrides.hydra
        if not override.lstrip("+~").startswith(OWN)
    ]
    return [*options, *overrides]


def _returned(status: Status) -> JobReturn:
    returned = JobReturn(
        overrides=status.job.overrides, working_dir=str(Path.cwd()), task_name=status.job.name
    )
    if status.is_done:
        returned.status = JobStatus.COMPLETED
        returned.return_value = status.reached.value
    else:
        returned.status = JobStatus.FAILED
        returned.return_value = JobUnfinishedError(status.line)
    return returned

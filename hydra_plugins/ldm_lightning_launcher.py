"""Hydra's launcher for ``-m``: every job of a sweep is a process of its own.

Hydra accepts launchers from the package ``hydra_plugins`` alone, and imports all that is there at
every start of every command; so this file holds what Hydra asks for, and ``ldm_lightning.sweep``,
imported when a sweep begins, does the work. Neither imports torch.

In one process, jobs would share environment variables, seeds, W&B runs and torch's global settings,
and the other processes of a DDP job would run the whole sweep again.
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn, JobStatus, configure_log
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

if TYPE_CHECKING:
    from ldm_lightning.sweep.status import Status

log = logging.getLogger(__name__)

OWN = ("hydra.launcher", "hydra/launcher", "hydra.sweep", "hydra/sweep", "hydra.mode", "hydra.run.")
"""What Hydra's words begin with that describe the sweep, and not its jobs."""

DECIDED_BY_THE_SWEEP = {
    "resume": "a sweep goes on by itself when it is started again with the same sweep_name",
    "output_dir": "a job's folder is outputs/sweeps/SWEEP_NAME/NUMBER_HASH",
}


class JobUnfinishedError(HydraException):
    """A job of a sweep failed, or was ended from outside."""


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

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Check what can be checked before any job is made up; called by Hydra.

        Raises:
            ValueError: Naming the setting and what to give.
        """
        from ldm_lightning.command import check_alone
        from ldm_lightning.sweep.resources import Resources, chosen_gpus

        check_alone("a sweep", instead="start it alone; its jobs start the others (trainer=ddp).")
        if config.sweep_name is None:
            raise ValueError(
                "A sweep needs a name: give sweep_name=NAME, one for all jobs. Its folder is "
                "outputs/sweeps/NAME, and the same name goes on with it."
            )
        self.config = config
        self.resources = Resources(
            self.n_jobs, self.threads, chosen_gpus(self.gpus), self.gpus_per_job
        )

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> list[JobReturn]:
        """Run the jobs that are not done; called by Hydra, by some sweepers again and again.

        Args:
            job_overrides: The words of each job.
            initial_job_idx: How many jobs were launched before; a job's folder does not depend on
                it.

        Returns:
            One a job, whose value is its ``monitor``.

        Raises:
            ValueError: If a word sets what the sweep decides.
            SystemExit: After Ctrl-C and SIGTERM, when all jobs have ended.
        """
        from ldm_lightning.sweep.process import Command
        from ldm_lightning.sweep.running import run_sweep

        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        _check_words(job_overrides)
        ended = run_sweep(
            Path(self.config.hydra.sweep.dir).absolute(),
            job_overrides,
            command=Command(self.module, tuple(_options(self.config))),
            resources=self.resources,
        )
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
        return [_returned(status) for status in ended.statuses]


def _check_words(job_overrides: Sequence[Sequence[str]]) -> None:
    from ldm_lightning.chain.steps import key_of

    for word in {word for words in job_overrides for word in words}:
        if (key := key_of(word)) in DECIDED_BY_THE_SWEEP:
            reason = DECIDED_BY_THE_SWEEP[key]
            raise ValueError(f"{word} is not for a sweep: {reason}. Leave it out.")


def _options(config: DictConfig) -> list[str]:
    """The words of the command line that count for the jobs' Hydra."""
    from ldm_lightning.command import config_dir_words

    words = [word for word in config.hydra.overrides.hydra if not word.lstrip("+~").startswith(OWN)]
    return [*config_dir_words(config.hydra), *words]


def _returned(status: Status) -> JobReturn:
    returned = JobReturn(
        overrides=status.job.words, working_dir=str(Path.cwd()), task_name=status.job.name
    )
    if status.is_done:
        returned.status = JobStatus.COMPLETED
        returned.return_value = status.reached.value
    else:
        returned.status = JobStatus.FAILED
        returned.return_value = JobUnfinishedError(status.line)
    return returned

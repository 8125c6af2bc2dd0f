"""Train a first or a second stage: check, build, load, prepare, fit, report.

    python -m ldm_lightning.train experiment=vqgan_f16

``--help`` lists groups and values; ``--cfg job`` prints a configuration; ``explain=KEY`` says which
files set a key. None of them imports torch.
"""

from __future__ import annotations

import logging
import sys

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from ldm_lightning.checks.explain import explanation, take_explain
from ldm_lightning.checks.keys import check_keys
from ldm_lightning.cli import (
    handle_user_errors,
    quiet_lightning,
    record_end,
    run_entry_point,
    run_lock,
)
from ldm_lightning.config import CONF_DIR
from ldm_lightning.distributed.processes import end_with_parent, record_first_cause
from ldm_lightning.resume.arguments import continued_arguments
from ldm_lightning.runs.run_folder import RunFolder
from ldm_lightning.training.check import CheckedRun, check, check_folder
from ldm_lightning.utils.launch import launched


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="train")
def _train(cfg: DictConfig) -> float | None:
    with handle_user_errors():
        return train(cfg, HydraConfig.get())


def train(cfg: DictConfig, runtime: HydraConf) -> float | None:
    """Run the configuration.

    Args:
        cfg: The composed configuration.
        runtime: Hydra's own configuration of this job: group choices, overrides, folder.

    Returns:
        The final value of ``cfg.monitor``, for sweeps; None where nothing was validated.
    """
    quiet_lightning()
    check_keys(cfg, runtime.runtime.choices)
    run_folder = RunFolder.create(runtime.runtime.output_dir)
    is_first = launched().is_first
    if not is_first:
        logging.getLogger().setLevel(logging.WARNING)  # one of them tells what all do
    with run_lock(run_folder, is_first=is_first):
        if is_first:
            check_folder(cfg, run_folder)
        with record_end(run_folder, is_first=is_first), record_first_cause(run_folder):
            return _run(check(cfg, runtime, run_folder))


def _run(checked: CheckedRun) -> float | None:
    """Build and run what was checked; torch is imported here."""
    if checked.cfg.dry_run:
        from ldm_lightning.training.dry_run import dry_run

        dry_run(checked)
        return None
    from ldm_lightning.training.report import report
    from ldm_lightning.training.steps import build, fit, load, prepare

    return report(fit(prepare(load(build(checked)))))


def _complete_and_train() -> None:
    key, arguments = take_explain(sys.argv[1:])
    arguments = continued_arguments(arguments)
    if key is not None:
        sys.stdout.write(explanation(key, arguments))
        return
    sys.argv[1:] = arguments
    _train()


def main() -> None:
    """Entry point of ``ldm-train`` and ``python -m ldm_lightning.train``."""
    end_with_parent()
    run_entry_point(_complete_and_train)


if __name__ == "__main__":
    main()

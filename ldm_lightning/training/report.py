"""Report what a run reached: metrics, pictures, its page, the value that a sweep compares."""

import logging
from typing import Any

from ldm_lightning.metrics.names import meanings
from ldm_lightning.reporting.page.write import write_own_page
from ldm_lightning.reporting.table import print_metrics
from ldm_lightning.training.steps import FinishedRun
from ldm_lightning.utils.metadata import count_told

log = logging.getLogger(__name__)

PICTURES = {"Reconstructions": "reconstruction_latest.png", "Samples": "samples_latest.png"}


def report(finished: FinishedRun) -> float | None:
    """Print the final metrics and where everything is; write the run's page.

    Returns:
        The final value of ``monitor``; None where nothing was validated.
    """
    built, checked = finished.built, finished.built.checked
    cfg, run_folder = checked.cfg, checked.run_folder
    last: Any = built.module.report
    if built.trainer.is_global_zero:
        if last is not None:
            told = {} if cfg.train else {"weights": finished.weights}
            protocol = {
                name if "/" in name else f"val/{name}": {**entry, **told}
                for name, entry in last.protocol.items()
            }
            run_folder.update_summary({"protocol": protocol})
        summary = run_folder.read_summary()
        print_metrics(
            summary.get("metrics", {}),
            meanings(),
            title=f"{summary.get('state', 'done')} at update {summary.get('step', 0)}",
            counts={name: count_told(entry) for name, entry in summary.get("protocol", {}).items()},
        )
        for name, file in PICTURES.items():
            if (run_folder.images / file).is_file():
                log.info("%s: %s", name, run_folder.images / file)
        log.info("Run folder: %s", run_folder.path)
        if cfg.page:
            write_own_page(run_folder.path)
    return None if last is None else _monitored(last.scalars, str(cfg.monitor))


def _monitored(scalars: dict[str, float], name: str) -> float | None:
    return scalars.get(name, scalars.get(name.removeprefix("val/")))

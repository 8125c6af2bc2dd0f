"""Compare runs on one page that needs no network: table, figures, pictures.

    python -m ldm_lightning.report runs=outputs/sweeps/NAME

Reads run folders, also while they are being written, and changes nothing in them.
"""

from __future__ import annotations

import logging
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig

from ldm_lightning.checks.keys import check_keys
from ldm_lightning.cli import handle_user_errors, run_entry_point
from ldm_lightning.config import CONF_DIR

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="report")
def _report(cfg: DictConfig) -> None:
    with handle_user_errors():
        check_keys(cfg, HydraConfig.get().runtime.choices, command="report")
        report(cfg)


def report(cfg: DictConfig) -> Path:
    """Write the page and say where it is.

    Args:
        cfg: The composed configuration.

    Returns:
        The page.

    Raises:
        ValueError: If there are no runs, or the page cannot be written there.
    """
    patterns = list(cfg.runs) if isinstance(cfg.runs, ListConfig) else [cfg.runs]
    if not patterns or not all(patterns):
        raise ValueError(f"runs must be a folder, a glob or a list of these, got {cfg.runs!r}.")
    output = Path(cfg.output)
    if output.suffix != ".html":
        raise ValueError(f"output={output} must end in .html.")
    if not output.absolute().parent.is_dir():
        raise ValueError(f"output={output}: the folder {output.absolute().parent} does not exist.")
    if output.is_dir():
        raise ValueError(f"output={output} is a folder; give the name of a file.")

    from ldm_lightning.reporting.page.write import write_report

    written = write_report(patterns, output, pictured=str(cfg.pictured))
    log.info("Runs: %d. Figures: %d.", written.num_runs, written.num_figures)
    log.info("Numbers: %s", written.results)
    if written.num_figures:
        log.info("Figures: %s", written.figures)
    log.info("Page: %s", written.page)
    return written.page


def main() -> None:
    """Entry point of ``ldm-report`` and ``python -m ldm_lightning.report``."""
    run_entry_point(_report)


if __name__ == "__main__":
    main()

"""Compare runs on one page that needs no network: table, figures, pictures.

    python -m ldm_lightning.report runs=outputs/sweeps/NAME

Reads run folders, also while they are being written, and changes nothing in them.
"""

from __future__ import annotations

import logging
from pathlib import Path

import hydra
from omegaconf import DictConfig, ListConfig

from ldm_lightning.command import errors_told_plainly, misspelt
from ldm_lightning.config import CONF_DIR, register_resolvers

log = logging.getLogger(__name__)

OWN_KEYS = ("runs", "output", "pictured")


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="report")
def _report(cfg: DictConfig) -> None:
    with errors_told_plainly():
        report(cfg)


def report(cfg: DictConfig) -> Path:
    """Write the page and say where it is.

    Args:
        cfg: The composed configuration.

    Returns:
        The page.

    Raises:
        ValueError: If a key is unknown, there are no runs, or the page cannot be written there.
    """
    if unknown := [str(key) for key in cfg if key not in OWN_KEYS]:
        raise ValueError(misspelt(unknown[0], OWN_KEYS))
    runs = cfg.runs if isinstance(cfg.runs, ListConfig) else [cfg.runs]
    patterns = [pattern for pattern in runs if isinstance(pattern, str) and pattern]
    if not patterns or len(patterns) != len(runs):
        raise ValueError(f"runs must be a folder, a glob or a list of these, got {cfg.runs!r}.")
    output = Path(str(cfg.output))
    if output.suffix != ".html":
        raise ValueError(f"output={output} must end in .html.")
    if not output.absolute().parent.is_dir():
        raise ValueError(f"output={output}: the folder {output.absolute().parent} does not exist.")
    if output.is_dir():
        raise ValueError(f"output={output} is a folder; give the name of a file.")
    if not isinstance(cfg.pictured, str):
        raise ValueError(f"pictured must be a glob such as 'kl_*', got {cfg.pictured!r}.")

    from ldm_lightning.reporting.page.write import write_report

    written = write_report(patterns, output, pictured=cfg.pictured)
    log.info("%d runs, %d figures.", written.num_runs, written.num_figures)
    log.info("Numbers: %s", written.results)
    if written.num_figures:
        log.info("Figures: %s", written.figures)
    log.info("Page: %s", written.page)
    return written.page


def main() -> None:
    """Entry point of ``ldm-report`` and ``python -m ldm_lightning.report``."""
    register_resolvers()
    with errors_told_plainly():
        _report()


if __name__ == "__main__":
    main()

"""TensorBoard: scalars, pictures, histograms and the configuration, by number of updates."""

import importlib.util
import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image


class TensorBoardDashboard(TensorBoardLogger):
    """Write event files to ``tensorboard/`` in the run folder; together they are the run.

    Args:
        save_dir: The run folder.

    Raises:
        ValueError: If TensorBoard is not installed.
    """

    def __init__(self, save_dir: str | Path) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise ValueError(
                "logger=tensorboard needs a package that is not installed: pip install "
                "'ldm_lightning[tensorboard]'."
            )
        super().__init__(save_dir, name="tensorboard", version="", default_hp_metric=False)

    @property
    def log_dir(self) -> str:
        """Folder of the event files; a ``$`` in its name is no variable."""
        return self.root_dir

    @rank_zero_only
    def log_hyperparams(
        self,
        params: dict[str, Any] | Namespace,
        metrics: dict[str, Any] | None = None,
        step: int | None = None,
    ) -> None:
        """Add to the configuration, and show it as text."""
        super().log_hyperparams(params, metrics, step)
        text = json.dumps(self.hparams, indent=2, default=str)
        self.experiment.add_text("config", f"```json\n{text}\n```", 0)

    @rank_zero_only
    def log_picture(self, name: str, path: Path, *, step: int) -> None:
        """Show a PNG file."""
        with Image.open(path, formats=("PNG",)) as picture:
            self.experiment.add_image(name, np.asarray(picture), step, dataformats="HWC")

    @rank_zero_only
    def log_histogram(
        self, name: str, heights: Sequence[float], edges: Sequence[float], *, step: int
    ) -> None:
        """Show bars; the moments that an event stores are those of the bars' centers."""
        counts, limits = np.asarray(heights, float), np.asarray(edges, float)
        centers = (limits[:-1] + limits[1:]) / 2
        self.experiment.add_histogram_raw(
            name,
            min=limits[0],
            max=limits[-1],
            num=counts.sum(),
            sum=(counts * centers).sum(),
            sum_squares=(counts * centers**2).sum(),
            bucket_limits=limits[1:],
            bucket_counts=counts,
            global_step=step,
        )

    @rank_zero_only
    def drop_rows_after(self, step: int, *, validated: bool) -> None:
        """Hide events of later updates, which a continued run writes again.

        Only the beginning of a file can say so. Values of a validation that is repeated stay, and
        are followed by the same.
        """
        self.experiment.close()
        self.experiment.purge_step = step + 1  # of the file that the next event begins

    @rank_zero_only
    def save(self) -> None:
        """Put everything on disk; the configuration is in ``config.yaml``."""
        self.experiment.flush()

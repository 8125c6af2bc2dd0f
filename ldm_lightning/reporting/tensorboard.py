"""TensorBoard: scalars, pictures, histograms and the configuration, by number of updates."""

from __future__ import annotations

import importlib.util
import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardDashboard(Logger):
    """Write event files to ``tensorboard/`` in the run folder; together they are the run.

    Args:
        save_dir: The run folder.

    Raises:
        ValueError: If TensorBoard is not installed.
    """

    def __init__(self, save_dir: str | Path) -> None:
        super().__init__()
        if importlib.util.find_spec("tensorboard") is None:
            raise ValueError(
                "logger=tensorboard needs a package that is not installed: pip install "
                "'ldm_lightning[tensorboard]'."
            )
        self.folder = Path(save_dir) / "tensorboard"
        self._config: dict[str, Any] = {}
        self._writer: SummaryWriter | None = None

    @property
    def name(self) -> str:
        """Kind of this logger."""
        return "tensorboard"

    @property
    def version(self) -> str:
        """There is one folder a run, whatever the number of continuations."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self.folder.parent)

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Add to the configuration, and show it as text."""
        self._config |= vars(params) if isinstance(params, Namespace) else params
        text = json.dumps(self._config, indent=2, default=str)
        self._begun().add_text("config", f"```json\n{text}\n```", 0)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Show scalars.

        Raises:
            ValueError: If there is no step.
        """
        if step is None:
            raise ValueError(f"TensorBoard needs a step for {', '.join(metrics)}, got None.")
        for name, value in metrics.items():
            self._begun().add_scalar(name, value, step)

    @rank_zero_only
    def log_picture(self, name: str, path: Path, *, step: int) -> None:
        """Show a PNG file."""
        with Image.open(path, formats=("PNG",)) as picture:
            self._begun().add_image(name, np.asarray(picture), step, dataformats="HWC")

    @rank_zero_only
    def log_histogram(
        self, name: str, heights: Sequence[float], edges: Sequence[float], *, step: int
    ) -> None:
        """Show bars; the moments that an event stores are those of the bars' centers."""
        counts, limits = np.asarray(heights, float), np.asarray(edges, float)
        centers = (limits[:-1] + limits[1:]) / 2
        self._begun().add_histogram_raw(
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
        from torch.utils.tensorboard import SummaryWriter

        self._begun().close()
        self._writer = SummaryWriter(str(self.folder), purge_step=step + 1)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Put everything on disk."""
        if self._writer is not None:
            self._writer.close()

    def _begun(self) -> SummaryWriter:
        """Writer of the current event file; begins one."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder))
        return self._writer

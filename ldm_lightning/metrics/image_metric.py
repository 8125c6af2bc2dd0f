"""Interface of a user's own metric of reconstructions."""

import math
from abc import abstractmethod

import torch
from torch import Tensor
from torchmetrics import Metric


class ImageMetric(Metric):
    """Mean over images of one value an image; a subclass says which, and how to read it.

    Any other ``torchmetrics.Metric`` whose ``update`` takes images and reconstructions, whose
    ``compute`` returns a number, and which has the two attributes, can stand in its place.

    Attributes:
        meaning: One line for tables, with the unit.
        higher_is_better: None where neither way is better.
    """

    full_state_update = False
    meaning: str
    higher_is_better: bool | None
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @abstractmethod
    def measure(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """One value an image, [B].

        Args:
            images: float32 [B, C, H, W] in [-1, 1], of 8 bits as saved files are.
            reconstructions: The same.
        """

    def update(self, images: Tensor, reconstructions: Tensor) -> None:
        """Add a batch.

        Raises:
            ValueError: If ``measure`` returns another shape.
        """
        values = self.measure(images, reconstructions)
        if values.shape != images.shape[:1]:
            raise ValueError(
                f"{type(self).__name__}.measure must return one value an image, [{len(images)}], "
                f"got {list(values.shape)}."
            )
        self.total = self.total + values.detach().double().sum()
        self.count = self.count + len(values)

    def compute(self) -> float:
        """Mean over all images of all processes; NaN where there was none."""
        count = int(self.count)
        return float(self.total) / count if count else math.nan

"""Codebook usage over a whole set of images and all processes."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric


class CodebookResult(NamedTuple):
    """Use of a codebook.

    Attributes:
        usage: Share of codes used at least once, in [0, 1].
        perplexity: exp of the entropy of the codes' frequencies, in [1, K]: the size of an evenly
            used codebook that would be as informative.
        num_dead: Number of codes never used.
        histogram: How often each code was used, int64, [K].
    """

    usage: float
    perplexity: float
    num_dead: int
    histogram: Tensor


class CodebookUsage(Metric):
    """Counts codes over a set. Averages of a batch's perplexity would be smaller than the set's.

    Args:
        num_codes: K.

    Raises:
        ValueError: If ``num_codes`` is not positive.
    """

    full_state_update = False
    histogram: Tensor

    def __init__(self, num_codes: int) -> None:
        super().__init__()
        if num_codes < 1:
            raise ValueError(f"num_codes must be positive, got {num_codes}.")
        self.num_codes = num_codes
        self.add_state("histogram", torch.zeros(num_codes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, indices: Tensor) -> None:
        """Count codes.

        Args:
            indices: int64 in [0, K), any shape.

        Raises:
            ValueError: If an index is not in [0, K).
        """
        counts = torch.bincount(indices.flatten(), minlength=self.num_codes)
        if counts.numel() != self.num_codes:
            raise ValueError(
                f"Index {counts.numel() - 1} is beyond a codebook of {self.num_codes} codes; set "
                "num_codes to the bottleneck's."
            )
        self.histogram = self.histogram + counts

    def compute(self) -> CodebookResult:
        """Usage over all processes; usage 0 and perplexity 1 where nothing was counted."""
        used = self.histogram[self.histogram > 0].double()
        shares = used / used.sum()
        entropy = -(shares * shares.log()).sum()
        return CodebookResult(
            usage=used.numel() / self.num_codes,
            perplexity=float(entropy.exp()),
            num_dead=self.num_codes - used.numel(),
            histogram=self.histogram.clone(),
        )

"""Samples of a second stage in validation: few samples, always of the same noise, measured."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm_lightning.metrics.generation import GenerationMetrics
from ldm_lightning.metrics.reconstruction import MetricReport
from ldm_lightning.sampler.images import ImageSampler, default_labels, in_batches
from ldm_lightning.utils.collectives import num_processes, process_rank
from ldm_lightning.utils.image import spread_rows

RealBatches = Callable[[], Iterable[Mapping[str, Any]]]


@dataclass(frozen=True)
class Generated:
    """One pass over the samples.

    Attributes:
        report: Figures of all samples; over all processes.
        samples: The first ones of this process, [N, C, H, W] in [-1, 1].
        ceiling: Real images as the first stage reconstructs them, which no sample can surpass.
        prior: Decoded noise, which every sample should surpass.
    """

    report: MetricReport
    samples: Tensor
    ceiling: Tensor
    prior: Tensor


class GenerationValidation:
    """Generates, decodes and measures; a plain class, so that no state_dict holds its networks.

    Args:
        image_sampler: Around the denoiser that is trained.
        metrics: Against real images.
        real_batches: Batches of real images [B, C, H, W] in [-1, 1] under ``image``, from the
            start at each call; this process' share of them.
        num_samples: Images to generate, over all processes.
        batch_size: Images generated at once.
        num_shown: Images to keep for the pictures.
    """

    def __init__(
        self,
        image_sampler: ImageSampler,
        metrics: GenerationMetrics,
        real_batches: RealBatches,
        *,
        num_samples: int,
        batch_size: int,
        num_shown: int,
    ) -> None:
        if num_samples < 1 or batch_size < 1 or num_shown < 1:
            raise ValueError(
                "validation.num_samples, validation.sample_batch_size and the number of shown "
                f"images must be at least 1, got {num_samples}, {batch_size} and {num_shown}."
            )
        self.image_sampler = image_sampler
        self.metrics = metrics
        self.real_batches = real_batches
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.num_shown = min(num_shown, num_samples)
        self._ceiling: Tensor | None = None  # of a frozen first stage: never changes
        self._prior: Tensor | None = None  # likewise

    @property
    def names(self) -> set[str]:
        """Names of what is measured."""
        return self.metrics.names(num_samples=self.num_samples)

    @property
    def num_columns(self) -> int:
        """Images in a row of the pictures: one a class, where that fits."""
        num_classes = len(self.image_sampler.classes or ())
        return num_classes if 2 <= num_classes <= 16 else 8

    def run(
        self, device: torch.device, autocast: Callable[[], AbstractContextManager[Any]]
    ) -> Generated:
        """Generate and measure; call it on every process, with the denoiser in evaluation mode."""
        self.metrics.to(device).reset()
        shown: list[Tensor] = []
        rank, processes = process_rank(), num_processes()
        # Blocks, not every n-th: the first process shows the same images however many there are.
        own = range(
            self.num_samples * rank // processes, self.num_samples * (rank + 1) // processes
        )
        classes = self.image_sampler.classes
        for numbers in in_batches(own, self.batch_size):
            with autocast():
                images = self.image_sampler.images(numbers, default_labels(numbers, classes))
            self.metrics.update(images)
            if sum(map(len, shown)) < self.num_shown:
                shown.append(images.float())
        if self._ceiling is None or self.metrics.needs_references:
            self._ceiling = self._see_real_images(autocast)
        if self._prior is None:
            with autocast():
                self._prior = self.image_sampler.prior_images(range(self.num_columns)).float()
        return Generated(
            report=self.metrics.report(),
            samples=torch.cat(shown)[: self.num_shown] if shown else self._prior[:0],
            ceiling=self._ceiling,
            prior=self._prior,
        )

    def _see_real_images(self, autocast: Callable[[], AbstractContextManager[Any]]) -> Tensor:
        """Show the metrics what they need, and reconstruct a row of the first images."""
        ceiling: list[Tensor] = []
        first_stage = self.image_sampler.first_stage
        parameter = next(first_stage.parameters())
        for batch in self.real_batches():
            images = batch["image"].to(parameter)
            self.metrics.update_references(images)
            missing = self.num_columns - sum(map(len, ceiling))
            if missing > 0:
                with autocast():
                    shown = spread_rows(images, missing)
                    ceiling.append(first_stage.decode(first_stage.encode(shown)).float())
            elif not self.metrics.needs_references:
                break
        return torch.cat(ceiling) if ceiling else torch.empty(0)

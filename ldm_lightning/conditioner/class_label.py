"""Class labels as embeddings: added to the time embedding, or read by cross-attention."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm_lightning.conditioner.base import Conditioner
from ldm_lightning.nn.condition import Condition

KINDS = ("vector", "context")


class ClassConditioner(Conditioner):
    """One learned embedding a class, and one more that stands for no class.

    Args:
        num_classes: Number of classes; labels run from 0 to ``num_classes - 1``.
        width: Of an embedding: the denoiser's vector width, or its context width.
        kind: ``vector`` adds it to the time embedding (ADM, DiT); ``context`` offers it as the only
            token of cross-attention (published class-conditional latent diffusion).
        dropout: Share of a training batch that learns without its label.
        initial_std: Of the embeddings before training: 1 in ADM and latent diffusion, 0.02 in DiT.

    Raises:
        ValueError: If a number or the kind makes no sense.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        width: int,
        kind: str = "vector",
        dropout: float = 0.1,
        initial_std: float = 1.0,
    ) -> None:
        super().__init__(dropout=dropout, num_classes=num_classes)
        if num_classes < 1 or width < 1:
            raise ValueError(
                "conditioner.num_classes and conditioner.width must be at least 1, got "
                f"{num_classes} and {width}."
            )
        if kind not in KINDS:
            raise ValueError(f"conditioner.kind must be one of {KINDS}, got {kind!r}.")
        self.kind = kind
        self.embedding = nn.Embedding(num_classes + 1, width)
        nn.init.normal_(self.embedding.weight, std=initial_std)

    def forward(self, batch: Mapping[str, Any], *, drop: Tensor | None) -> Condition:
        """Embed ``label`` [B] int64.

        Raises:
            ValueError: If there are no labels. On the CPU also if one is out of range; on a GPU,
                where looking would wait for the device, the embedding stops with an assertion.
        """
        if "label" not in batch:
            raise ValueError(
                "conditioner=class_label needs images with labels, and this batch has none. Use "
                "data with class folders or .cls entries, or conditioner=none."
            )
        labels: Tensor = batch["label"]
        if labels.device.type == "cpu":
            self._check(labels)
        # Unchecked, one label too many would quietly mean no class: move it out of the table.
        labels = labels + (labels == self._null_label)
        if drop is not None:
            labels = torch.where(drop, self._null_label, labels)
        return self._embed(labels)

    def null(self, batch_size: int, device: torch.device) -> Condition:
        """The embedding that stands for no class, ``batch_size`` times."""
        return self._embed(torch.full((batch_size,), self._null_label, device=device))

    @property
    def _null_label(self) -> int:
        return self.embedding.num_embeddings - 1

    def _embed(self, labels: Tensor) -> Condition:
        rows = self.embedding(labels)
        return Condition(vector=rows) if self.kind == "vector" else Condition(context=rows[:, None])

    def _check(self, labels: Tensor) -> None:
        wrong = labels[(labels < 0) | (labels >= self._null_label)]
        if len(wrong):
            raise ValueError(
                f"Label {int(wrong[0])} is out of range: "
                f"conditioner.num_classes={self._null_label} has the labels 0 to "
                f"{self._null_label - 1}. Set conditioner.num_classes, or give other labels."
            )

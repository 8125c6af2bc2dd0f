"""What a denoiser is conditioned on, besides noise level and noisy latents."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """The three ways in which a condition enters a denoiser; all None is no condition.

    Attributes:
        vector: Added to the time embedding, of the network's width: [B, d].
        context: Tokens for cross-attention: [B, n, d].
        concat: Concatenated to the noisy latents: [B, c', h, w].
    """

    vector: Tensor | None = None
    context: Tensor | None = None
    concat: Tensor | None = None


def stack(unconditional: Condition, conditional: Condition) -> Condition:
    """Both conditions along the batch, unconditional first, for guidance in one batched call.

    Raises:
        ValueError: If one of the two has a part that the other lacks.
    """
    parts: dict[str, Tensor | None] = {}
    for name in (field.name for field in fields(Condition)):
        first, second = getattr(unconditional, name), getattr(conditional, name)
        if (first is None) != (second is None):
            having = "conditional" if first is None else "unconditional"
            raise ValueError(
                f"Both conditions must have the same parts; only the {having} one has {name!r}."
            )
        parts[name] = None if first is None else torch.cat([first, second])
    return Condition(**parts)

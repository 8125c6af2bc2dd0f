"""Conditions of a denoiser, besides noise level and noisy latents."""

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


def check_inputs(
    noisy: Tensor,
    network_time: Tensor,
    condition: Condition,
    *,
    in_channels: int,
    vector_width: int,
    context_width: int | None,
) -> None:
    """Refuse inputs that do not fit a denoiser.

    Args:
        noisy: Noisy latents, [B, c, h, w].
        network_time: [B].
        condition: Of the same batch.
        in_channels: Channels of latents and ``concat`` together.
        vector_width: Width of ``vector``.
        context_width: Width of the tokens of ``context``; None takes none.

    Raises:
        ValueError: Naming the shape and what to change.
    """
    batch, channels, height, width = noisy.shape
    if network_time.shape != (batch,):
        raise ValueError(
            f"network_time must be [{batch}], one a sample, got {list(network_time.shape)}."
        )
    concat, vector, context = condition.concat, condition.vector, condition.context
    num_concat = 0 if concat is None else concat.shape[1]
    if channels + num_concat != in_channels:
        raise ValueError(
            f"The denoiser takes in_channels={in_channels}, got {channels} of the noisy latents "
            f"and {num_concat} of the condition's concat; set denoiser.in_channels to their sum, "
            f"{channels + num_concat}."
        )
    if concat is not None and concat.shape[2:] != noisy.shape[2:]:
        raise ValueError(
            f"The condition's concat must have the latents' size {height}x{width}, got "
            f"{'x'.join(map(str, concat.shape[2:]))}."
        )
    if vector is not None and vector.shape != (batch, vector_width):
        raise ValueError(
            f"The condition's vector must be [{batch}, {vector_width}], got {list(vector.shape)}; "
            "set conditioner.width to the denoiser's, or leave it null."
        )
    if context is not None and context_width is None:
        raise ValueError(
            "The denoiser has no cross-attention, but the condition a context: use "
            "conditioner.kind=vector, or denoiser=unet with denoiser.context_width."
        )
    if context is None and context_width is not None:
        raise ValueError(
            f"The denoiser attends to a context of context_width={context_width}, but the "
            "condition has no context; leave out denoiser.context_width, or give a conditioner "
            "with one."
        )
    if context is not None and (context.ndim != 3 or context.shape[::2] != (batch, context_width)):
        raise ValueError(
            f"The condition's context must be [{batch}, n, {context_width}], got "
            f"{list(context.shape)}."
        )

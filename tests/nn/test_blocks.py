"""Attention is the textbook's, and its memory grows with the positions, not with their square."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ldm_lightning.denoiser.unet_attention import AttentionBlock as UNetAttention
from ldm_lightning.denoiser.unet_attention import SpatialTransformer
from ldm_lightning.nn.blocks import AttentionBlock

CHANNELS = 8


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return result


def test_attention_is_the_softmax_of_scaled_products():
    block, hidden = AttentionBlock(CHANNELS).double(), torch.randn(2, CHANNELS, 3, 5).double()
    rows = block.norm(hidden).flatten(2).transpose(1, 2)  # [B, 15, C]
    query, key, value = (
        rows @ conv.weight.flatten(1).T + conv.bias for conv in (block.q, block.k, block.v)
    )
    weights = torch.softmax(query @ key.transpose(1, 2) / CHANNELS**0.5, dim=-1)
    attended = weights @ value @ block.proj_out.weight.flatten(1).T + block.proj_out.bias
    expected = hidden + attended.transpose(1, 2).reshape(hidden.shape)
    torch.testing.assert_close(block(hidden), expected)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "attention",
    [
        lambda hidden: AttentionBlock(CHANNELS)(hidden),
        lambda hidden: UNetAttention(CHANNELS, num_heads=2)(hidden),
        lambda hidden: SpatialTransformer(CHANNELS, context_width=4, num_heads=2, depth=1)(
            hidden, torch.randn(1, 3, 4)
        ),
    ],
    ids=["first_stage", "unet", "transformer"],
)
def test_no_table_of_all_pairs_of_positions_is_ever_made(attention, layout, precision):
    """At 1024 px and f 8 there are 16,384 positions, and the table would take a GiB an image."""
    side = 24
    hidden = torch.randn(1, CHANNELS, side, side).to(memory_format=layout).requires_grad_()
    with (
        LargestTensor() as largest,
        torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16),
    ):
        attention(hidden).sum().backward()
    assert hidden.grad is not None
    assert 0 < largest.elements < (side**2) ** 2 / 4

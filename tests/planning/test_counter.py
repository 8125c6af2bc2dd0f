"""Counts against closed forms, torch's own counter, and the memory that autograd holds."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ldm_lightning.nn.condition import Condition
from ldm_lightning.planning.counter import Counter, without_memory
from tests.denoiser.small_unet import build as small_unet
from tests.module.small import small_module


def counted(work):
    with Counter() as counter:
        work()
    return counter


@pytest.mark.parametrize("is_fake", [False, True])
def test_convolutions_linears_and_attention_cost_their_closed_forms(is_fake):
    """Two operations a multiply-add; biases, norms and activations count as nothing."""
    batch, c_in, c_out, side, width = 2, 3, 5, 8, 6

    def closed_forms():
        conv = nn.Conv2d(c_in, c_out, kernel_size=3, padding=1, stride=2)
        images = torch.rand(batch, c_in, side, side)
        assert counted(lambda: conv(images)).flops == 2 * batch * c_out * 16 * c_in * 9
        transposed = nn.ConvTranspose2d(c_in, c_out, kernel_size=2, stride=2)
        expected = 2 * batch * c_in * c_out * side**2 * 4
        assert counted(lambda: transposed(images)).flops == expected
        linear, tokens = nn.Linear(c_in, width), torch.rand(batch, 7, c_in)
        assert counted(lambda: linear(tokens)).flops == 2 * batch * 7 * c_in * width
        query, context = torch.rand(batch, 4, 7, width), torch.rand(batch, 4, 11, width)
        attention = 2 * batch * 4 * (7 * 11 * width) * 2  # products with keys, then with values
        counter = counted(lambda: F.scaled_dot_product_attention(query, context, context))
        assert counter.flops == attention

    if is_fake:
        with without_memory():
            closed_forms()
    else:
        closed_forms()


def test_a_whole_update_counts_as_torchs_own_counter_counts_it():
    """Which knows no attention on the CPU: so with the kernel that is written as products."""
    unet, noisy = small_unet(), torch.rand(2, 4, 8, 8)

    def update():
        with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
            unet(noisy, torch.rand(2), Condition()).square().mean().backward()

    with FlopCounterMode(display=False) as reference:
        update()
    assert counted(update).flops == reference.get_total_flops()


def test_live_bytes_after_a_forward_pass_are_what_autograd_saved():
    model = small_module(base_width=16).autoencoder
    images = torch.rand(2, 3, 32, 32)
    held = {value.untyped_storage()._cdata for value in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in held:
            saved[storage._cdata] = storage.nbytes()
        return tensor.detach()  # the tensor itself would hold its own graph

    counter = Counter()
    counter.know(iter([*model.parameters(), *model.buffers(), images]))
    with counter, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(images, torch.zeros(2, 4, 8, 8))
    assert counter.live_bytes == pytest.approx(sum(saved.values()), rel=0.03)
    kept = counter.live_bytes
    with counter:
        output.outputs.sum().backward()
    del output
    gradients = sum(parameter.numel() * 4 for parameter in model.parameters())
    assert counter.live_bytes == pytest.approx(gradients, abs=1024)
    assert counter.peak_bytes >= kept


def test_what_shares_memory_counts_once_and_what_is_freed_no_longer():
    known = torch.zeros(100)
    counter = Counter()
    counter.know(iter([known]))
    with counter:
        first = torch.zeros(25)
        views = [first.view(5, 5), first[3:], known[2:], known.view(10, 10)]
        assert counter.live_bytes == 100
        second = first + 1
        assert counter.live_bytes == 200
        del first, views, second
    assert (counter.live_bytes, counter.peak_bytes) == (0, 200)


def test_without_memory_nothing_is_allocated_and_attention_keeps_its_fused_kernel():
    with without_memory(), Counter() as counter:
        tokens = torch.empty(1, 1, 2**16, 64, requires_grad=True)
        F.scaled_dot_product_attention(tokens, tokens, tokens).sum().backward()
    assert counter.peak_bytes < 2**16 * 64 * 4 * 10

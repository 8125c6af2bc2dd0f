"""The U-Net as the diffusion process meets it."""

import re

import pytest
import torch
from torch import nn

from ldm_lightning.denoiser.unet_layers import group_norm
from ldm_lightning.nn.condition import Condition
from tests.denoiser.small_unet import build, randomized

TIME = torch.tensor([3.0, 700.0])


def noisy(height=8, width=8, *, channels=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, channels, height, width, generator=generator)


@pytest.mark.parametrize("context_width", [None, 6])
@pytest.mark.parametrize("resblock_updown", [False, True])
def test_before_training_the_prediction_is_zero_and_yet_learns(context_width, resblock_updown):
    network = build(context_width=context_width, resblock_updown=resblock_updown)
    context = None if context_width is None else torch.randn(2, 3, context_width)
    output = network(noisy(), TIME, Condition(context=context))
    assert torch.equal(output, torch.zeros(2, 4, 8, 8))
    (output - noisy(seed=2)).square().mean().backward()
    assert network.out[-1].weight.grad.abs().max() > 0


def test_what_ends_a_residual_branch_is_zero_before_training():
    network = build(context_width=6)
    zero = {name for name, weight in network.named_parameters() if not weight.any()}
    ends = {name for name, _ in network.named_parameters() if ".out_layers.3" in name}
    ends |= {name for name, _ in network.named_parameters() if ".1.proj_out" in name}
    ends |= {"out.2.weight", "out.2.bias"}
    norm_biases = {
        f"{name}.bias"
        for name, module in network.named_modules()
        if isinstance(module, (nn.GroupNorm, nn.LayerNorm))
    }
    assert zero - norm_biases == ends


@pytest.mark.parametrize("size", [(8, 8), (4, 12), (16, 2)])
@pytest.mark.parametrize("resblock_updown", [False, True])
def test_any_divisible_size_comes_back_in_its_shape(size, resblock_updown):
    network = randomized(resblock_updown=resblock_updown, out_channels=3)
    assert network(noisy(*size), TIME, Condition()).shape == (2, 3, *size)


def test_each_sample_is_predicted_by_itself():
    network, inputs = randomized().eval(), noisy()
    together = network(inputs, TIME, Condition())
    alone = network(inputs[1:], TIME[1:], Condition())
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together, network(inputs, TIME.flip(0), Condition()), atol=1e-3)


def test_every_part_of_a_condition_changes_the_prediction():
    network = randomized(in_channels=5, context_width=6)
    parts = {
        "vector": torch.randn(2, network.vector_width),
        "context": torch.randn(2, 3, 6),
        "concat": torch.randn(2, 1, 8, 8),
    }
    before = network(noisy(), TIME, Condition(**parts))
    for name in parts:
        after = network(noisy(), TIME, Condition(**(parts | {name: parts[name] + 1})))
        assert (after - before).abs().max() > 1e-2, name


def test_the_vector_is_as_wide_as_the_time_embedding():
    assert build(base_width=24).vector_width == 96


@pytest.mark.parametrize("context_width", [None, 6])
def test_recomputation_changes_neither_output_nor_gradients(context_width):
    context = None if context_width is None else torch.randn(2, 3, context_width)
    results = []
    for gradient_checkpointing in (False, True):
        network = randomized(
            context_width=context_width, gradient_checkpointing=gradient_checkpointing, dropout=0.2
        ).train()
        vector = torch.ones(2, network.vector_width, requires_grad=True)
        torch.manual_seed(3)
        output = network(noisy(), TIME, Condition(vector=vector, context=context))
        output.square().sum().backward()
        gradients = {name: weight.grad for name, weight in network.named_parameters()}
        results.append((output, vector.grad, gradients))
    torch.testing.assert_close(*results)


def test_recomputation_keeps_less_for_the_backward_pass():
    def kept(gradient_checkpointing: bool) -> int:
        sizes = []

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            sizes.append(tensor.numel() if tensor.requires_grad else 0)
            return tensor

        network = randomized(
            gradient_checkpointing=gradient_checkpointing, num_res_blocks=2
        ).train()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            network(noisy(), TIME, Condition())
        return sum(sizes)

    assert kept(gradient_checkpointing=True) < kept(gradient_checkpointing=False) / 3


@pytest.mark.parametrize("context_width", [None, 6])
def test_channels_last_computes_the_same_in_that_order(context_width):
    network = randomized(context_width=context_width)
    condition = Condition(context=None if context_width is None else torch.randn(2, 3, 6))
    expected = network(noisy(), TIME, condition)
    network = network.to(memory_format=torch.channels_last)
    output = network(noisy().to(memory_format=torch.channels_last), TIME, condition)
    assert output.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


def test_under_autocast_the_prediction_is_float32_and_close():
    network = randomized()
    expected = network(noisy(), TIME, Condition())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(noisy(), TIME, Condition())
    assert output.dtype == torch.float32
    assert (output - expected).abs().mean() < 0.05 * expected.abs().mean()


def test_times_in_double_precision_are_taken():
    network = randomized()
    torch.testing.assert_close(
        network(noisy(), TIME.double(), Condition()),
        network(noisy(), TIME, Condition()),
        rtol=1e-3,
        atol=1e-3,
    )


@pytest.mark.parametrize(
    ("channels", "groups"), [(8, 4), (32, 16), (48, 24), (64, 32), (224, 32), (7, 1), (1, 1)]
)
def test_groups_are_32_and_never_single_channels(channels, groups):
    norm = group_norm(channels)
    assert norm.num_groups == groups
    assert channels == 1 or channels // groups >= 2


@pytest.mark.parametrize("heads", [{}, {"num_heads": 2, "head_width": 8}])
def test_heads_are_given_in_one_way(heads):
    with pytest.raises(ValueError, match=r"num_heads=(None|2)\b.*head_width=(None|8)\b"):
        build(**({"head_width": None, "num_heads": None} | heads))


@pytest.mark.parametrize("heads", [{"num_heads": 5}, {"head_width": 12}])
def test_a_width_its_heads_do_not_divide_is_refused(heads):
    name, value = next(iter(heads.items()))
    with pytest.raises(ValueError, match=rf"\b32 channels\b.*{name}={value}\b"):
        build(**({"head_width": None} | heads))


@pytest.mark.parametrize("size", [(9, 8), (8, 6)])
def test_a_size_that_does_not_divide_is_refused(size):
    with pytest.raises(ValueError, match=rf"\b{size[0]}x{size[1]}\b.*factor 4\b"):
        build(width_multipliers=[1, 2, 2])(noisy(*size), TIME, Condition())


@pytest.mark.parametrize("concat", [None, torch.zeros(2, 2, 8, 8)])
def test_a_wrong_number_of_channels_is_refused(concat):
    num_concat = 0 if concat is None else 2
    numbers = rf"in_channels=5\b.*\b4\b.*\b{num_concat}\b.*\b{4 + num_concat}\b"
    with pytest.raises(ValueError, match=numbers):
        build(in_channels=5)(noisy(), TIME, Condition(concat=concat))


def test_a_concat_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"\b8x8\b.*\b4x8\b"):
        build(in_channels=5)(noisy(), TIME, Condition(concat=torch.zeros(2, 1, 4, 8)))


def test_context_and_context_width_need_each_other():
    with pytest.raises(ValueError, match="cross-attention.*context"):
        build()(noisy(), TIME, Condition(context=torch.zeros(2, 3, 6)))
    with pytest.raises(ValueError, match=r"context_width=6\b"):
        build(context_width=6)(noisy(), TIME, Condition())


@pytest.mark.parametrize("shape", [(2, 3, 5), (1, 3, 6), (2, 6)])
def test_a_context_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"context.*\[2, n, 6\].*" + re.escape(str(list(shape)))):
        build(context_width=6)(noisy(), TIME, Condition(context=torch.zeros(shape)))


@pytest.mark.parametrize("shape", [(2, 16), (1, 64)])
def test_a_vector_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"vector.*\[2, 64\].*" + re.escape(str(list(shape)))):
        build()(noisy(), TIME, Condition(vector=torch.zeros(shape)))


def test_one_time_for_the_whole_batch_is_refused():
    with pytest.raises(ValueError, match=r"network_time.*\[2\].*\[\]"):
        build()(noisy(), torch.tensor(3.0), Condition())

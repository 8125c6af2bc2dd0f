"""The diffusion transformer: published sizes, diffusers' numbers, any size, zero at the start."""

import copy
import math

import pytest
import torch
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

from ldm_lightning.conditioner.class_label import ClassConditioner
from ldm_lightning.denoiser.dit import DiT, position_embedding
from ldm_lightning.nn.condition import Condition

SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}
PUBLISHED_MILLIONS = {"S": 33, "B": 130, "L": 458, "XL": 675}  # with patches of 2, Table 1


def small(**changes):
    settings = {
        "in_channels": 4,
        "out_channels": 4,
        "width": 32,
        "num_blocks": 2,
        "num_heads": 4,
        "patch_size": 2,
    }
    return DiT(**(settings | changes))


def randomized(model, seed=0):
    """Weights that are zero at the start hide what comes before them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def count_by_formula(width, num_blocks, patch, in_channels, out_channels):
    """Linear maps with biases: per block qkv, projection, two of the MLP, six modulations."""
    block = 4 * width * width + 4 * width + 8 * width * width + 5 * width + 6 * width * (width + 1)
    time = 256 * width + width + width * width + width
    patches = in_channels * patch**2 * width + width
    final = 2 * width * (width + 1) + patch**2 * out_channels * (width + 1)
    return num_blocks * block + time + patches + final


@pytest.mark.parametrize("patch", [2, 4, 8])
@pytest.mark.parametrize("name", SIZES)
def test_published_sizes(name, patch):
    width, num_blocks, num_heads = SIZES[name]
    with torch.device("meta"):
        model = small(
            width=width,
            num_blocks=num_blocks,
            num_heads=num_heads,
            patch_size=patch,
            out_channels=8,
        )
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == count_by_formula(width, num_blocks, patch, 4, 8)
    if patch == 2:
        labels = 1001 * width  # ImageNet's embeddings are the conditioner's
        assert round((count + labels) / 1e6) == PUBLISHED_MILLIONS[name]


def diffusers_twin(model, class_table):
    """The same weights in diffusers' DiT, with the table of a class conditioner."""
    twin = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
    ).eval()
    own, theirs = model.state_dict(), {}
    for index in range(2):
        ours, other = f"blocks.{index}.", f"transformer_blocks.{index}."
        for part in ("weight", "bias"):
            for name, piece in zip("qkv", own[f"{ours}attn.qkv.{part}"].chunk(3), strict=True):
                theirs[f"{other}attn1.to_{name}.{part}"] = piece
            theirs[f"{other}attn1.to_out.0.{part}"] = own[f"{ours}attn.proj.{part}"]
            theirs[f"{other}ff.net.0.proj.{part}"] = own[f"{ours}mlp.0.{part}"]
            theirs[f"{other}ff.net.2.{part}"] = own[f"{ours}mlp.2.{part}"]
            theirs[f"{other}norm1.linear.{part}"] = own[f"{ours}adaLN_modulation.1.{part}"]
            for layer, at in (("linear_1", 0), ("linear_2", 2)):
                name = f"{other}norm1.emb.timestep_embedder.{layer}.{part}"
                theirs[name] = own[f"t_embedder.{at}.{part}"]
        theirs[f"{other}norm1.emb.class_embedder.embedding_table.weight"] = class_table
    for part in ("weight", "bias"):
        theirs[f"pos_embed.proj.{part}"] = own[f"x_embedder.{part}"]
        theirs[f"proj_out_1.{part}"] = own[f"final_layer.adaLN_modulation.1.{part}"]
        theirs[f"proj_out_2.{part}"] = own[f"final_layer.linear.{part}"]
    missing, unexpected = twin.load_state_dict(theirs, strict=False)
    assert not unexpected
    assert all("pos_embed" in name for name in missing)
    for block in twin.transformer_blocks:  # published: frequencies 10000^(-i / 128), not / 127
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    return twin


def test_equals_diffusers():
    model = randomized(small()).eval()
    noisy, time = draw(3, 4, 8, 8), torch.tensor([0.0, 431.0, 999.0])
    with torch.no_grad():
        expected = diffusers_twin(model, torch.zeros(11, 32))(
            noisy, timestep=time, class_labels=torch.zeros(3, dtype=torch.long)
        ).sample
        actual = model(noisy, time, Condition())
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_equals_diffusers_on_labels_and_on_the_null_label():
    model = randomized(small()).eval()
    conditioner = randomized(ClassConditioner(num_classes=10, width=32)).eval()
    noisy, time = draw(3, 4, 8, 8), torch.tensor([0.0, 431.0, 999.0])
    labels, drop = torch.tensor([7, 0, 3]), torch.tensor([False, False, True])
    with torch.no_grad():
        expected = diffusers_twin(model, conditioner.embedding.weight)(
            noisy, timestep=time, class_labels=torch.tensor([7, 0, 10])
        ).sample
        actual = model(noisy, time, conditioner({"label": labels}, drop=drop))
        without = model(noisy, time, Condition())
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(actual, without, atol=1e-2)


def test_positions_are_the_published_ones_on_a_square():
    expected = torch.as_tensor(
        get_2d_sincos_pos_embed(32, 6, base_size=6, output_type="pt")
    ).float()
    torch.testing.assert_close(position_embedding(6, 6, 32), expected, rtol=1e-5, atol=1e-6)


def test_positions_of_a_part_are_those_of_the_whole():
    whole = position_embedding(4, 6, 16).unflatten(0, (4, 6))
    torch.testing.assert_close(position_embedding(4, 3, 16).unflatten(0, (4, 3)), whole[:, :3])


def test_predicts_zero_before_training():
    output = small()(draw(2, 4, 8, 8), torch.tensor([10.0, 900.0]), Condition(draw(2, 32)))
    assert output.shape == (2, 4, 8, 8)
    assert not output.any()


def test_weights_start_as_published():
    model = small(width=128)

    def deviation(weight):
        return pytest.approx(weight.std().item(), rel=0.1)

    assert all(deviation(model.t_embedder[at].weight) == 0.02 for at in (0, 2))
    attention = model.blocks[0].attn
    patches = model.x_embedder.weight.flatten(1)  # a linear map of whole patches
    for weight in (attention.qkv.weight, attention.proj.weight, patches):
        fan_out, fan_in = weight.shape
        assert deviation(weight) == math.sqrt(2 / (fan_in + fan_out))  # Xavier
    biases = [value for name, value in model.named_parameters() if name.endswith("bias")]
    assert not any(bias.any() for bias in biases)


def test_time_vector_and_concat_matter():
    model = randomized(small(in_channels=6)).eval()
    noisy, time = draw(1, 4, 8, 8), torch.tensor([500.0])
    concat = draw(1, 2, 8, 8, seed=2)
    base = model(noisy, time, Condition(concat=concat))
    others = [
        model(noisy, time / 2, Condition(concat=concat)),
        model(noisy, time, Condition(vector=draw(1, 32), concat=concat)),
        model(noisy, time, Condition(concat=-concat)),
    ]
    assert all(not torch.allclose(base, other, atol=1e-3) for other in others)


def test_takes_sizes_that_are_not_square():
    model = randomized(small(patch_size=4)).eval()
    assert model(draw(2, 4, 8, 16), torch.rand(2), Condition()).shape == (2, 4, 8, 16)


def test_sizes_in_turn_do_not_disturb_each_other():
    model = randomized(small()).eval()
    fresh = copy.deepcopy(model)
    time = torch.tensor([300.0])
    model(draw(1, 4, 8, 4), time, Condition())
    for shape in ((1, 4, 4, 8), (1, 4, 4, 4), (1, 4, 8, 4), (1, 4, 2, 16)):
        expected = copy.deepcopy(fresh)(draw(*shape), time, Condition())
        torch.testing.assert_close(model(draw(*shape), time, Condition()), expected)


@pytest.mark.parametrize(("row", "column"), [(0, 11), (5, 2)])
def test_a_patch_sees_only_itself_while_every_gate_is_closed(row, column):
    model = small()
    torch.nn.init.normal_(model.final_layer.linear.weight)
    noisy = draw(1, 4, 6, 12)
    changed = noisy.clone()
    changed[..., row, column] += 1
    time = torch.tensor([500.0])
    difference = model(noisy, time, Condition()) - model(changed, time, Condition())
    patch = difference[..., row // 2 * 2 :, column // 2 * 2 :][..., :2, :2]
    assert patch.abs().min() > 0
    assert difference.count_nonzero() == patch.numel()


def test_positions_are_no_part_of_the_state():
    model = small()
    names = set(model.state_dict())
    model(draw(1, 4, 8, 8), torch.zeros(1), Condition())
    assert set(model.state_dict()) == names == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_learns_after_inference_mode(gradient_checkpointing):
    model = randomized(small(gradient_checkpointing=gradient_checkpointing))
    noisy, time = draw(1, 4, 8, 8), torch.zeros(1)
    with torch.inference_mode():
        model.eval()(noisy, time, Condition())
    model.train()(noisy, time, Condition()).square().sum().backward()
    assert all(parameter.grad.any() for parameter in model.parameters())


def test_under_autocast_blocks_are_summed_and_the_prediction_made_in_full_precision():
    model = randomized(small()).eval()
    streams = []
    for block in model.blocks:
        block.register_forward_hook(lambda *call: streams.append(call[-1].dtype))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(draw(1, 4, 8, 8), torch.zeros(1), Condition(draw(1, 32)))
    assert streams == [torch.float32, torch.float32]
    assert output.dtype == torch.float32


def test_recomputing_changes_nothing():
    kept = randomized(small()).train()
    recomputed = copy.deepcopy(kept)
    recomputed.gradient_checkpointing = True
    noisy, time = draw(2, 4, 8, 8), torch.tensor([5.0, 700.0])
    calls = []
    for model in (kept, recomputed):
        for block in model.blocks:
            block.register_forward_pre_hook(
                lambda *_, model=model: calls.append(model.gradient_checkpointing)
            )
    outputs = [model(noisy, time, Condition()) for model in (kept, recomputed)]
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.square().sum().backward()
    assert calls.count(False) == 2
    assert calls.count(True) == 4  # once more going back
    for one, other in zip(kept.parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize(
    ("shape", "condition", "message"),
    [
        ((1, 4, 7, 8), Condition(), r"\b7x8\b.*denoiser\.patch_size=2"),
        ((1, 3, 8, 8), Condition(), r"in_channels=4\b.*\b3\b"),
        ((1, 4, 8, 8), Condition(concat=torch.zeros(1, 2, 8, 8)), r"in_channels=4\b.*\b2\b.*\b6\b"),
        ((1, 2, 8, 8), Condition(concat=torch.zeros(1, 2, 4, 4)), r"\b8x8\b.*\b4x4\b"),
        ((1, 4, 8, 8), Condition(context=torch.zeros(1, 1, 32)), "cross-attention.*context"),
        ((1, 4, 8, 8), Condition(vector=torch.zeros(1, 8)), r"\[1, 32\].*\[1, 8\]"),
        ((1, 4, 8, 8), Condition(vector=torch.zeros(2, 32)), r"\[1, 32\].*\[2, 32\]"),
        ((2, 4, 8, 8), Condition(), r"network_time.*\[2\].*\[1\]"),
    ],
)
def test_what_does_not_fit_is_told(shape, condition, message):
    with pytest.raises(ValueError, match=message):
        small()(torch.zeros(shape), torch.zeros(1), condition)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match=r"denoiser.width=32 .*num_heads=5"):
        small(num_heads=5)


@pytest.mark.parametrize("name", ["num_heads", "patch_size", "num_blocks", "out_channels"])
def test_sizes_below_one_are_refused(name):
    with pytest.raises(ValueError, match=rf"denoiser\.{name}\b.*\b0\b"):
        small(**{name: 0})

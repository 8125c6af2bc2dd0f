"""The U-Net computes what diffusers' U-Nets compute with the same weights.

In float64, and closer than another epsilon in one kind of normalization would leave them.
Weights go from published names to diffusers' names, so that these are checked with the arithmetic.
diffusers has no cross-attention together with residual blocks that change the resolution.
"""

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from ldm_lightning.denoiser.unet import UNet
from ldm_lightning.denoiser.unet_attention import AttentionBlock
from ldm_lightning.nn.condition import Condition
from tests.denoiser.small_unet import randomized

# 32 groups at all widths, as diffusers has one number for all
OPTIONS = {"base_width": 64, "width_multipliers": [1, 2], "num_res_blocks": 2, "attention_at": [2]}
LAYER_NAMES = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
    "op": "conv",
}
FIXED_NAMES = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def block_names(network: UNet, *, num_res_blocks: int) -> dict[str, str]:
    """Prefix of every layer -> diffusers' prefix."""
    names = dict(FIXED_NAMES)
    for index in range(1, len(network.input_blocks)):
        level, place = divmod(index - 1, num_res_blocks + 1)
        own, theirs = f"input_blocks.{index}", f"down_blocks.{level}"
        between_levels = place == num_res_blocks
        names[f"{own}.0"] = f"{theirs}." + (
            "downsamplers.0" if between_levels else f"resnets.{place}"
        )
        names[f"{own}.1"] = f"{theirs}.attentions.{place}"
    for index, layers in enumerate(network.output_blocks):
        level, place = divmod(index, num_res_blocks + 1)
        own, theirs = f"output_blocks.{index}", f"up_blocks.{level}"
        names[f"{own}.0"] = f"{theirs}.resnets.{place}"
        for position, layer in enumerate(layers[1:], start=1):
            attends = isinstance(layer, AttentionBlock)
            names[f"{own}.{position}"] = f"{theirs}." + (
                f"attentions.{place}" if attends else "upsamplers.0"
            )
    return names


def convert(network: UNet, *, num_res_blocks: int) -> dict[str, torch.Tensor]:
    """Weights of a U-Net without cross-attention under diffusers' names."""
    names = block_names(network, num_res_blocks=num_res_blocks)
    converted = {}
    for key, weight in network.state_dict().items():
        prefix = next(name for name in names if key.startswith(f"{name}."))
        target = names[prefix]
        layer, _, kind = key.removeprefix(f"{prefix}.").rpartition(".")
        if layer == "qkv":
            num_heads = network.get_submodule(prefix).num_heads
            by_head = weight.squeeze(-1).unflatten(0, (num_heads, 3, -1))
            for index, letter in enumerate("qkv"):
                converted[f"{target}.to_{letter}.{kind}"] = by_head[:, index].flatten(0, 1)
        elif "attentions" in target:
            layer = {"norm": "group_norm", "proj_out": "to_out.0"}[layer]
            converted[f"{target}.{layer}.{kind}"] = weight.squeeze(-1)
        else:
            layer = LAYER_NAMES.get(layer, layer)
            converted[f"{target}.{layer}.{kind}" if layer else f"{target}.{kind}"] = weight
    return converted


def inputs(*, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    noisy = torch.randn(2, 4, 8, 12, generator=generator, dtype=torch.float64)
    return noisy, torch.tensor([3.0, 411.0])


@pytest.mark.parametrize("scale_shift_norm", [False, True])
@pytest.mark.parametrize(
    ("resblock_updown", "attention_at"), [(False, [2]), (False, [1, 2]), (True, [1, 2])]
)
@torch.no_grad()
def test_without_context_it_is_the_unconditional_model(
    scale_shift_norm, resblock_updown, attention_at
):
    changes = {"attention_at": attention_at, "scale_shift_norm": scale_shift_norm}
    own = randomized(**(OPTIONS | changes), head_width=16, resblock_updown=resblock_updown).double()
    attention = [1 in attention_at, True]
    resample = "resnet" if resblock_updown else "conv"
    theirs = UNet2DModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128),
        layers_per_block=2,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in attention[::-1]),
        attention_head_dim=16,
        downsample_type=resample,
        upsample_type=resample,
        resnet_time_scale_shift="scale_shift" if scale_shift_norm else "default",
        attn_norm_num_groups=32,
    ).double()
    theirs.load_state_dict(convert(own, num_res_blocks=2), strict=True)
    noisy, time = inputs()
    expected = theirs(noisy, time).sample
    assert expected.std() > 0.1
    torch.testing.assert_close(own(noisy, time, Condition()), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale_shift_norm", [False, True])
@pytest.mark.parametrize(
    ("heads", "depth"), [({"num_heads": 4}, 1), ({"head_width": 32}, 1), ({"num_heads": 1}, 2)]
)
@torch.no_grad()
def test_with_context_it_is_the_conditional_model_under_published_names(
    scale_shift_norm, heads, depth
):
    own = randomized(
        **OPTIONS,
        **({"head_width": None} | heads),
        context_width=24,
        transformer_depth=depth,
        scale_shift_norm=scale_shift_norm,
    ).double()
    theirs = UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=heads.get("num_heads") or (2, 4),  # their number of heads, by level
        cross_attention_dim=24,
        transformer_layers_per_block=depth,
        resnet_time_scale_shift="scale_shift" if scale_shift_norm else "default",
    ).double()
    published = {f"model.diffusion_model.{key}": v for key, v in own.state_dict().items()}
    theirs.load_state_dict(convert_ldm_unet_checkpoint(published, theirs.config), strict=True)
    noisy, time = inputs()
    context = torch.randn(2, 5, 24, dtype=torch.float64)
    expected = theirs(noisy, time, context).sample
    assert expected.std() > 0.1
    torch.testing.assert_close(
        own(noisy, time, Condition(context=context)), expected, rtol=1e-9, atol=1e-9
    )

"""U-Nets have the parameter counts of the published ones, and the names of their weights."""

from typing import Any

import pytest
import torch

from ldm_lightning.conditioner.class_label import ClassConditioner
from ldm_lightning.denoiser.unet import UNet

# name: options, parameters. The published counts are those of the U-Net alone: embeddings of labels
# and tokens are the conditioner's.
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "celebahq": (
        {"in_channels": 3, "base_width": 224, "width_multipliers": [1, 2, 3, 4],
         "attention_at": [8, 4, 2], "head_width": 32}, 274_056_163),
    "churches": (
        {"in_channels": 4, "base_width": 192, "width_multipliers": [1, 2, 2, 4, 4],
         "attention_at": [1, 2, 4, 8], "num_heads": 8, "scale_shift_norm": True,
         "resblock_updown": True}, 294_966_916),
    "imagenet_vq_f8": (
        {"in_channels": 4, "base_width": 256, "width_multipliers": [1, 2, 4],
         "attention_at": [4, 2, 1], "head_width": 32, "context_width": 512}, 394_984_196),
    "imagenet_vq_f4": (
        {"in_channels": 3, "base_width": 192, "width_multipliers": [1, 2, 3, 5],
         "attention_at": [8, 4, 2], "num_heads": 1, "context_width": 512}, 400_920_579),
    "text2img": (
        {"in_channels": 4, "base_width": 320, "width_multipliers": [1, 2, 4, 4],
         "attention_at": [4, 2, 1], "num_heads": 8, "context_width": 1280}, 872_300_484),
    "text2img_small": (
        {"in_channels": 3, "base_width": 192, "width_multipliers": [1, 2, 3, 5],
         "attention_at": [8, 4, 2], "head_width": 32, "context_width": 640}, 403_623_939),
    "inpainting": (
        {"in_channels": 7, "out_channels": 3, "base_width": 256, "width_multipliers": [1, 2, 3, 4],
         "attention_at": [8, 4, 2], "num_heads": 8, "resblock_updown": True}, 387_245_827),
    "superres": (
        {"in_channels": 6, "out_channels": 3, "base_width": 160, "width_multipliers": [1, 2, 2, 4],
         "attention_at": [16, 8], "head_width": 32}, 113_622_563),
    "semantic": (
        {"in_channels": 6, "out_channels": 3, "base_width": 128, "width_multipliers": [1, 4, 8],
         "attention_at": [32, 16, 8], "num_heads": 8}, 215_229_315),
    "layout": (
        {"in_channels": 3, "base_width": 128, "width_multipliers": [1, 2, 3, 4],
         "attention_at": [8, 4, 2], "head_width": 32, "context_width": 512,
         "transformer_depth": 3}, 246_277_379),
}  # fmt: skip


def build(name: str) -> UNet:
    options = {"out_channels": PUBLISHED[name][0]["in_channels"], "num_res_blocks": 2}
    with torch.device("meta"):
        return UNet(**(options | PUBLISHED[name][0]))


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_network_has_the_published_number_of_parameters(name):
    assert count(build(name)) == PUBLISHED[name][1]


@pytest.mark.parametrize(("name", "num_classes"), [("imagenet_vq_f4", 1000)])
def test_embeddings_of_labels_come_on_top_in_the_conditioner(name, num_classes):
    network = build(name)
    conditioner = ClassConditioner(
        num_classes=num_classes, width=network.context_width, kind="context"
    )
    assert count(conditioner) == (num_classes + 1) * 512  # 1001 rows, as published
    assert count(network) + count(conditioner) == PUBLISHED[name][1] + 512_512


# Written down by hand, after the published checkpoints without ``model.diffusion_model.``.
KEYS: dict[str, dict[str, tuple[int, ...]]] = {
    "imagenet_vq_f4": {
        "time_embed.0.weight": (768, 192),
        "time_embed.2.bias": (768,),
        "input_blocks.0.0.weight": (192, 3, 3, 3),
        "input_blocks.1.0.in_layers.0.weight": (192,),
        "input_blocks.1.0.in_layers.2.weight": (192, 192, 3, 3),
        "input_blocks.1.0.emb_layers.1.weight": (192, 768),
        "input_blocks.2.0.out_layers.0.bias": (192,),
        "input_blocks.2.0.out_layers.3.weight": (192, 192, 3, 3),
        "input_blocks.3.0.op.weight": (192, 192, 3, 3),
        "input_blocks.4.0.skip_connection.weight": (384, 192, 1, 1),
        "input_blocks.4.1.norm.weight": (384,),
        "input_blocks.4.1.proj_in.weight": (384, 384, 1, 1),
        "input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight": (384, 384),
        "input_blocks.4.1.transformer_blocks.0.attn1.to_out.0.bias": (384,),
        "input_blocks.4.1.transformer_blocks.0.ff.net.0.proj.weight": (3072, 384),
        "input_blocks.5.1.transformer_blocks.0.ff.net.2.weight": (384, 1536),
        "input_blocks.5.1.transformer_blocks.0.attn2.to_k.weight": (384, 512),
        "input_blocks.5.1.transformer_blocks.0.norm3.bias": (384,),
        "input_blocks.11.1.proj_out.weight": (960, 960, 1, 1),
        "middle_block.0.in_layers.2.weight": (960, 960, 3, 3),
        "middle_block.1.transformer_blocks.0.attn2.to_v.weight": (960, 512),
        "middle_block.2.out_layers.3.bias": (960,),
        "output_blocks.0.0.in_layers.0.weight": (1920,),
        "output_blocks.2.0.skip_connection.weight": (960, 1536, 1, 1),
        "output_blocks.2.2.conv.weight": (960, 960, 3, 3),
        "output_blocks.5.0.in_layers.2.weight": (576, 960, 3, 3),
        "output_blocks.8.2.conv.bias": (384,),
        "output_blocks.9.0.in_layers.0.bias": (576,),
        "output_blocks.11.0.skip_connection.weight": (192, 384, 1, 1),
        "out.0.weight": (192,),
        "out.2.weight": (3, 192, 3, 3),
    },
    "celebahq": {
        "input_blocks.4.1.norm.bias": (448,),
        "input_blocks.4.1.qkv.weight": (1344, 448, 1),
        "input_blocks.4.1.proj_out.weight": (448, 448, 1),
        "middle_block.1.qkv.bias": (2688,),
        "output_blocks.0.1.qkv.weight": (2688, 896, 1),
        "output_blocks.8.2.conv.weight": (448, 448, 3, 3),
    },
    "churches": {
        "input_blocks.1.1.qkv.weight": (576, 192, 1),
        "input_blocks.3.0.in_layers.2.weight": (192, 192, 3, 3),
        "input_blocks.3.0.emb_layers.1.weight": (384, 768),
        "output_blocks.2.1.out_layers.3.weight": (768, 768, 3, 3),
        "output_blocks.5.2.out_layers.3.weight": (768, 768, 3, 3),
        "output_blocks.14.0.skip_connection.weight": (192, 384, 1, 1),
    },
}


@pytest.mark.parametrize("name", KEYS)
def test_weights_bear_the_published_names_and_have_the_published_shapes(name):
    weights = build(name).state_dict()
    assert {key: tuple(weights[key].shape) for key in KEYS[name] if key in weights} == KEYS[name]

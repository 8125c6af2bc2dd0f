"""U-Nets of a few weights."""

from typing import Any

import torch

from ldm_lightning.denoiser.unet import UNet

SMALL: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "base_width": 16,
    "width_multipliers": [1, 2],
    "num_res_blocks": 1,
    "attention_at": [2],
    "head_width": 8,
}


def build(**changes: Any) -> UNet:
    """The U-Net as it is before training: its prediction is zero."""
    torch.manual_seed(0)
    return UNet(**(SMALL | changes))


def randomized(**changes: Any) -> UNet:
    """The same with all weights drawn, biases and those at zero too."""
    network = build(**changes)
    for parameter in network.parameters():
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=scale)
    return network

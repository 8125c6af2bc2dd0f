"""First stages of a few thousand weights, in memory and as checkpoints of a run."""

from pathlib import Path
from typing import Any

import torch

from ldm_lightning.autoencoder.autoencoder import Autoencoder
from ldm_lightning.autoencoder.frozen import FrozenFirstStage
from ldm_lightning.restore.first_stage import open_first_stage, rebuild_autoencoder

BOTTLENECKS: dict[str, dict[str, Any]] = {
    "gaussian": {"_target_": "ldm_lightning.bottleneck.gaussian.GaussianBottleneck"},
    "identity": {"_target_": "ldm_lightning.bottleneck.identity.IdentityBottleneck"},
    "quantizer": {
        "_target_": "ldm_lightning.bottleneck.vector_quantizer.VectorQuantizer",
        "num_codes": 8,
        "latent_channels": 4,
    },
}


def description(kind: str = "gaussian") -> dict[str, Any]:
    """What a checkpoint says about its autoencoder: f = 4, 4 latent channels."""
    return {
        "autoencoder": {
            "_target_": "ldm_lightning.autoencoder.autoencoder.convolutional_autoencoder",
            "image_channels": 3,
            "latent_channels": 4,
            "downsampling_factor": 4,
            "base_width": 8,
            "width_multipliers": [1, 1, 2],
            "num_res_blocks": 1,
            "attention_at": [],
            "middle_attention": False,
            "upsampling": "nearest",
            "gradient_checkpointing": False,
            "output": "images",
        },
        "bottleneck": BOTTLENECKS[kind],
        "image_channels": 3,
        "resolution": 16,
    }


def autoencoder_of(kind: str = "gaussian", *, seed: int = 0) -> Autoencoder:
    """Random weights; codes as large as the latents."""
    torch.manual_seed(seed)
    autoencoder = rebuild_autoencoder(description(kind))
    if kind == "quantizer":
        torch.nn.init.normal_(autoencoder.bottleneck.embedding.weight)  # type: ignore[union-attr]
    return autoencoder


def write_checkpoint(path: Path, kind: str = "gaussian", *, seed: int = 0) -> Path:
    """Write raw weights, and the same plus a little as their average."""
    tensors = autoencoder_of(kind, seed=seed).state_dict()
    averaged = {n: v + 1e-3 if v.is_floating_point() else v for n, v in tensors.items()}
    checkpoint = {
        "state_dict": {f"autoencoder.{name}": value for name, value in tensors.items()},
        "ema": averaged,
        "first_stage": description(kind),
        "global_step": 3,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, path)
    return path


def frozen(folder: Path, kind: str = "gaussian", *, seed: int = 0) -> FrozenFirstStage:
    """A first stage in use, from a checkpoint in a folder."""
    path = write_checkpoint(folder / f"{kind}{seed}.ckpt", kind, seed=seed)
    return open_first_stage(path, weights="ema").frozen()

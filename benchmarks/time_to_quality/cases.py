"""First stages that are compared: our experiment, and the original's network of the same size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig

from benchmarks.experiment import composed
from ldm_lightning.builders.first_stage import stored_first_stage
from ldm_lightning.config import check_values, discriminator_start
from ldm_lightning.restore.first_stage import build_autoencoder

MINUTES = 15.0
"""Of the whole comparison, in which our experiment trains as long as its configuration says."""

CASES = {"kl_f8": 64, "vqgan_f16": 64, "kl_f4": 32}
"""Resolution of each experiment, in pixels."""

ALONE = (
    "scale=cpu",
    "features=tiny",
    "page=false",
    *(
        f"callbacks.{name}=null"
        for name in (
            *("reconstruction_grid", "distributions", "codebook_alarm", "stall_stopping"),
            *("progress", "performance", "estimate", "run_summary", "checkpointing"),
        )
    ),
)
"""Words of a run that only trains and averages."""

ORIGINAL = ("autoencoder.linear_start=false", "autoencoder.patch_size=1")
ORIGINAL_BOTTLENECK = {
    "kl": ("bottleneck.initial_log_variance=0.0",),
    "vq": (
        "bottleneck.normalize=false",
        "bottleneck.quantize_start_step=0",
        "bottleneck.restart_every_steps=0",
    ),
}
"""The published network, without what our experiments add for short runs."""

WIDTHS = range(8, 257, 4)
LARGEST_SIZE_DIFFERENCE = 0.1


@dataclass(frozen=True)
class Setting:
    """Conditions that all arms of a comparison share.

    Attributes:
        case: A name in ``CASES``.
        seed: Of weights, order of images and noise.
        minutes: Of training.
        precision: ``32`` or ``bf16``.
        num_images: Validation images that quality is measured on.
        words: Of Hydra: the images, and changes to our experiment.
    """

    case: str
    seed: int
    minutes: float
    precision: str
    num_images: int
    words: tuple[str, ...]


def our_configuration(setting: Setting, folder: Path) -> DictConfig:
    """Compose our experiment, its updates scaled by the minutes.

    Raises:
        ValueError: If its values do not go together.
    """
    words = _words(setting, folder)
    cfg = composed(*words)
    num_steps = max(2, round(cfg.max_steps * setting.minutes / MINUTES))
    cfg = composed(*words, f"max_steps={num_steps}", f"validation.every_steps={num_steps}")
    check_values(cfg)
    return cfg


def discriminator_fraction(cfg: DictConfig) -> float | None:
    """Fraction of our run at which the discriminator comes in; None without one."""
    return discriminator_start(cfg) / cfg.max_steps if cfg.discriminator._target_ else None


def original_configuration(setting: Setting, folder: Path, *, num_parameters: int) -> DictConfig:
    """Compose the original's network, its width chosen to have as many parameters as ours.

    Raises:
        ValueError: If no width comes within 10 %.
    """
    kind = "kl" if setting.case.startswith("kl") else "vq"
    words = (*_words(setting, folder), *ORIGINAL, *ORIGINAL_BOTTLENECK[kind])

    def difference(width: int) -> float:
        return abs(count(composed(*words, f"autoencoder.base_width={width}")) / num_parameters - 1)

    width = _nearest_width(difference)
    if difference(width) > LARGEST_SIZE_DIFFERENCE:
        raise ValueError(f"Width {width} differs by {difference(width):.0%} in parameters.")
    return composed(*words, f"autoencoder.base_width={width}")


def _nearest_width(difference: Callable[[int], float]) -> int:
    """The width of the smallest difference, which falls up to it and rises after."""
    low, high = 0, len(WIDTHS) - 1
    while low < high:
        middle = (low + high) // 2
        if difference(WIDTHS[middle]) <= difference(WIDTHS[middle + 1]):
            high = middle
        else:
            low = middle + 1
    return WIDTHS[low]


def count(cfg: DictConfig) -> int:
    """Parameters of a configuration's autoencoder."""
    with torch.device("meta"):
        autoencoder = build_autoencoder(stored_first_stage(cfg))
    return sum(parameter.numel() for parameter in autoencoder.parameters())


def _words(setting: Setting, folder: Path) -> Sequence[str]:
    return (
        f"experiment={setting.case}",
        *ALONE,
        f"resolution={CASES[setting.case]}",
        f"seed={setting.seed}",
        f"output_dir={folder}",
        f"data.max_val_images={setting.num_images}",
        f"trainer.precision={setting.precision}",
        *setting.words,
    )

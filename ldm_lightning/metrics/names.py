"""Names of the metrics, their better direction, and their meaning in one line.

Metrics and loss terms of a configuration are registered by name when they are built; a run keeps
what was registered in its summary, for reports.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class MetricMeaning:
    """Direction and meaning of a metric.

    Attributes:
        meaning: One line for the table at the end of a run, with the unit.
        higher_is_better: ``None`` where neither way is better.
    """

    meaning: str
    higher_is_better: bool | None


METRICS: dict[str, MetricMeaning] = {
    "psnr": MetricMeaning("peak signal-to-noise ratio in dB, mean over images", True),
    "ssim": MetricMeaning("structural similarity, at most 1, mean over images", True),
    "high_frequency_deficit": MetricMeaning(
        "share of the images' power missing above 0.125 cycles per pixel, 0 to 1 (blur)", False
    ),
    "power_ratio_octave_1": MetricMeaning(
        "power over the images' at 0.25 to 0.5 cycles per pixel; 1: equal, below: blur", None
    ),
    "power_ratio_octave_2": MetricMeaning(
        "power over the images' at 0.125 to 0.25 cycles per pixel; 1: equal, below: blur", None
    ),
    "power_ratio_octave_3": MetricMeaning(
        "power over the images' at 0.0625 to 0.125 cycles per pixel; 1: equal, below: blur", None
    ),
    "color_explained": MetricMeaning(
        "explained variance of color (Cb and Cr): 1 all of it, 0 gray images", True
    ),
    "block_edge_ratio": MetricMeaning(
        "steps across the latent grid's lines over steps elsewhere; 1: no blocks", None
    ),
    "lpips": MetricMeaning("perceptual distance, AlexNet features, mean over images", False),
    "lpips_vgg": MetricMeaning("perceptual distance, VGG features, mean over images", False),
    "perceptual_tiny": MetricMeaning(
        "perceptual distance, embedded tiny features (not LPIPS), mean over images", False
    ),
    "rfid": MetricMeaning("Fréchet distance of reconstructions to images, Inception", False),
    "rfd_tiny": MetricMeaning(
        "Fréchet distance of reconstructions to images, embedded tiny features (not FID)", False
    ),
    "fid": MetricMeaning("Fréchet distance of two sets of images, Inception", False),
    "fd_tiny": MetricMeaning(
        "Fréchet distance of two sets of images, embedded tiny features (not FID)", False
    ),
    "kid": MetricMeaning(
        "kernel distance of two sets of images, Inception; unbiased, so it may be below 0", False
    ),
    "kd_tiny": MetricMeaning(
        "kernel distance of two sets of images, embedded tiny features (not KID)", False
    ),
    "precision": MetricMeaning("share of samples among the real images, Inception, 0 to 1", True),
    "precision_tiny": MetricMeaning(
        "share of samples among the real images, embedded tiny features, 0 to 1", True
    ),
    "recall": MetricMeaning("share of real images among the samples, Inception, 0 to 1", True),
    "recall_tiny": MetricMeaning(
        "share of real images among the samples, embedded tiny features, 0 to 1", True
    ),
    "kl": MetricMeaning("information the posterior carries, in nats per image", None),
    "codebook_usage": MetricMeaning("share of codes used at least once, 0 to 1", True),
    "codebook_perplexity": MetricMeaning("effective number of codes, 1 to K", True),
    "nll": MetricMeaning("negative log-likelihood of the pixels, in nats per image", False),
    "elbo": MetricMeaning("evidence lower bound, -nll - kl, in nats per image", True),
    "compression_ratio": MetricMeaning("elements of an image over elements of its latents", None),
    "bits_per_pixel": MetricMeaning("log2(codes) / f^2; real-valued latents have none", None),
    "perf/encode_images_per_s": MetricMeaning("images encoded a second, median of batches", True),
    "perf/decode_images_per_s": MetricMeaning("images decoded a second, median of batches", True),
    "loss": MetricMeaning("diffusion loss, mean over noise levels", False),
    "latent/mean": MetricMeaning("mean of the latents before the normalizer", None),
    "latent/std": MetricMeaning("standard deviation of the latents before the normalizer", None),
}

FLOOR_PREFIX = "linear_floor_"

METRICS |= {
    f"{FLOOR_PREFIX}{name}": MetricMeaning(
        f"of linear maps with latents of this shape: {METRICS[name].meaning}", None
    )
    for name in ("psnr", "ssim", "lpips", "lpips_vgg", "perceptual_tiny", "rfid", "rfd_tiny")
}
"""What a first stage is compared with; see ``linear_floor``."""

OWN: dict[str, MetricMeaning] = {}
"""Registered in this process, by name."""

OWN_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
MAX_MEANING_LETTERS = 200


def register(name: str, metric: MetricMeaning) -> None:
    """Make a metric or loss term of a configuration known; harmless when repeated.

    Raises:
        ValueError: If the name is taken or no word of small letters.
    """
    if name in METRICS or not OWN_NAME.fullmatch(name):
        raise ValueError(
            f"A metric of your own cannot be called {name!r}: expected small letters, digits and "
            "underscores, and no name of a metric of ldm_lightning."
        )
    OWN[name] = metric


def own_meanings() -> dict[str, dict[str, Any]]:
    """The registered metrics as plain values for a summary."""
    return {name: asdict(metric) for name, metric in OWN.items()}


def register_stored(stored: Any) -> None:
    """Register what a summary stores; entries that are not of this shape are left out."""
    for name, entry in stored.items() if isinstance(stored, Mapping) else ():
        if not isinstance(entry, Mapping) or not OWN_NAME.fullmatch(str(name)) or name in METRICS:
            continue
        meaning, higher = entry.get("meaning"), entry.get("higher_is_better")
        if isinstance(meaning, str) and (higher is None or isinstance(higher, bool)):
            OWN[str(name)] = MetricMeaning(meaning[:MAX_MEANING_LETTERS], higher)


def meanings() -> dict[str, str]:
    """One line by name, of all metrics."""
    return {name: metric.meaning for name, metric in {**METRICS, **OWN}.items()}


def directions() -> dict[str, bool]:
    """Return whether higher is better, by name, of every metric that has a direction."""
    metrics = {**METRICS, **OWN}.items()
    return {name: one.higher_is_better for name, one in metrics if one.higher_is_better is not None}


def describe(name: str) -> MetricMeaning:
    """Look a metric up by its full name, such as ``val/psnr`` or ``latent/std``.

    Raises:
        KeyError: If the metric is unknown.
    """
    known = {**METRICS, **OWN}
    return known[name] if name in known else known[name.split("/", 1)[-1]]


def linear_floor_of(metrics: Mapping[str, float], *, stage: str) -> dict[str, float]:
    """Select a floor's figures, by the metric's own name, of values by full name.

    Args:
        metrics: Such as ``val/psnr`` and ``val/linear_floor_psnr``.
        stage: ``val`` or ``test``.
    """
    start = f"{stage}/{FLOOR_PREFIX}"
    return {
        name.removeprefix(start): value for name, value in metrics.items() if name.startswith(start)
    }

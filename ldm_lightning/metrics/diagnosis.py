"""Diagnosis of a first stage from the pattern of its numbers.

A low PSNR has many causes, and each needs another remedy. The other numbers tell them apart: a
posterior that carries nothing (KL), codes that nobody uses (perplexity), weights that no longer do
what their own training validated. Every cause names the number that shows it and what to change.
"""

import math
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field

from ldm_lightning.metrics.names import linear_floor_of

PERCEPTUAL = ("perceptual_tiny", "lpips", "lpips_vgg")

COLLAPSED_KL = 0.5
"""Nats a latent below which the posterior is called collapsed. First stages trained with the
published weight carry some 20 to 50, one trained with a weight of 10 carried 1e-4."""

COLLAPSED_FRACTION = 0.05
"""Perplexity below this share of the codes (or of the positions there were) is a collapse."""

DAMAGE_DB = 0.5
"""PSNR lost since training validated the same weights on the same images. Other devices and
precisions move it by hundredths."""

WORSE_THAN_GRAY_DB = 1.0
"""PSNR below that of plain gray images which only broken weights have. A decoder that paints the
mean of all images lies within half a decibel of gray."""

OTHER_IMAGES_DB = 3.0
"""PSNR lost between the training's own images and these from which on it is worth a word."""

STILL_RISING_DB = 0.3
"""PSNR gained between the last two validations by which a training was not yet at its end."""


@dataclass(frozen=True)
class FirstStageFacts:
    """Facts of a first stage beside its metrics; None where unknown.

    Attributes:
        num_latents: Numbers in the latents of one image, c * h * w.
        num_positions: Latent positions of the whole measured set, N * h * w.
        num_codes: K.
        downsampling_factor: f.
        kl_weight: Weight of the KL in its training.
        gray_psnr: PSNR that plain mid-gray images would have on the measured set, in dB.
        trained: What its own training validated of these very weights, by full name; empty where
            there is no record.
        same_images: Whether that validation saw the images that were measured now.
        psnr_rise: PSNR that its training gained between the last two validations, in dB.
    """

    num_latents: int | None = None
    num_positions: int | None = None
    num_codes: int | None = None
    downsampling_factor: int | None = None
    kl_weight: float | None = None
    gray_psnr: float | None = None
    trained: Mapping[str, float] = field(default_factory=dict)
    same_images: bool = False
    psnr_rise: float | None = None


@dataclass(frozen=True)
class Cause:
    """A likely cause.

    Attributes:
        name: Short name, such as ``posterior_collapse``.
        evidence: The numbers that show it.
        change: What to change.
    """

    name: str
    evidence: str
    change: str

    def __str__(self) -> str:
        """Evidence and remedy in two sentences."""
        return f"{self.evidence} {self.change}"


def likely_causes(
    metrics: Mapping[str, float], failed: Set[str], facts: FirstStageFacts
) -> tuple[Cause, ...]:
    """Name what probably made thresholds fail, the most certain first; empty where nothing did.

    Args:
        metrics: By full name (``val/psnr``, ``latent/std``); NaN counts as unknown.
        failed: Names of the metrics that missed their thresholds.
        facts: What else is known.
    """
    if not failed:
        return ()
    known = {name: value for name, value in metrics.items() if math.isfinite(value)}
    specific = [
        cause
        for find in (
            *(_not_measured, _damage, _posterior_collapse, _codebook_collapse, _scale),
            _untrained,
        )
        if (cause := find(known, failed, facts)) is not None
    ]
    if specific:
        return tuple(specific)
    general: tuple[Finder, ...] = (_other_images, _poor_reconstruction, _lost_texture)
    found = [cause for find in general if (cause := find(known, failed, facts)) is not None]
    return tuple(found) or (
        Cause(
            "unknown",
            f"No known pattern: {', '.join(sorted(failed))} missed the threshold and every other "
            "number looks healthy.",
            "Look at the grid, and at the threshold itself.",
        ),
    )


def missed_floor(metrics: Mapping[str, float]) -> dict[str, float]:
    """Bounds of the linear floor that a first stage misses, by full name of the metric.

    Empty unless it is below its floor in PSNR and in every perceptual distance that was measured: a
    network may well give up PSNR for texture, or the reverse.
    """
    floor = linear_floor_of(metrics, stage="val")
    perceptual = [name for name in PERCEPTUAL if name in floor and f"val/{name}" in metrics]
    if "psnr" not in floor or not perceptual or "val/psnr" not in metrics:
        return {}
    if metrics["val/psnr"] >= floor["psnr"]:
        return {}
    if any(metrics[f"val/{name}"] <= floor[name] for name in perceptual):
        return {}
    return {f"val/{name}": floor[name] for name in ("psnr", *perceptual)}


Finder = Callable[[Mapping[str, float], Set[str], FirstStageFacts], Cause | None]


def _untrained(
    metrics: Mapping[str, float], failed: Set[str], facts: FirstStageFacts
) -> Cause | None:
    """Less than linear maps reach with latents of the same shape."""
    bounds = missed_floor(metrics)
    if not bounds:
        return None
    told = [
        f"{name} is {metrics[name]:.4g}, the floor {bound:.4g}" for name, bound in bounds.items()
    ]
    return Cause(
        "untrained",
        f"It is untrained: linear maps with latents of this shape do better ({'; '.join(told)}).",
        "Train it longer, or start it on such maps: autoencoder.linear_start=true.",
    )


def _not_measured(
    metrics: Mapping[str, float], failed: Set[str], facts: FirstStageFacts
) -> Cause | None:
    missing = sorted(name for name in failed if name not in metrics)
    if not missing:
        return None
    return Cause(
        "not_measured",
        f"There is no finite value of {', '.join(missing)}.",
        "Either the first stage gives NaN or infinite values, or the images are too few or too "
        "small for this metric: measure more of them (data.max_val_images), or set its threshold "
        "to null.",
    )


def _damage(metrics: Mapping[str, float], failed: Set[str], facts: FirstStageFacts) -> Cause | None:
    """Weights that no longer give what their own training measured, or what no training gives."""
    psnr, before = metrics.get("val/psnr"), facts.trained.get("val/psnr")
    if psnr is None:
        return None
    change = (
        "The file is not what its run saved: take another checkpoint of that run (best.ckpt, "
        "last.ckpt), or train the first stage again."
    )
    if before is not None and facts.same_images and before - psnr > DAMAGE_DB:
        evidence = (
            f"val/psnr is {psnr:.4g} dB, but {before:.4g} dB stands in the run's own record of "
            "this checkpoint on the same images, so its weights were changed since."
        )
        return Cause("damaged_weights", f"{evidence} {_damaged_half(metrics, facts)}", change)
    confirmed = before is not None and facts.same_images
    gray = facts.gray_psnr
    if not confirmed and gray is not None and psnr < gray - WORSE_THAN_GRAY_DB:
        return Cause(
            "damaged_weights",
            f"val/psnr is {psnr:.4g} dB, below the {gray:.4g} dB of plain gray images: no training "
            "of a first stage ends there, so its weights are damaged (or hardly trained).",
            change,
        )
    return None


def _damaged_half(metrics: Mapping[str, float], facts: FirstStageFacts) -> str:
    """Tell from the latents which half was changed."""
    for name in ("val/kl", "latent/std"):
        now, before = metrics.get(name), facts.trained.get(name)
        if now is None or before is None:
            continue
        if abs(now - before) > 0.01 * abs(before):
            return f"Its encoder is damaged: {name} is {now:.5g} and was {before:.5g}."
        return f"Its decoder is damaged, not its encoder: {name} is {now:.5g}, as it was."
    return ""


def _posterior_collapse(
    metrics: Mapping[str, float], failed: Set[str], facts: FirstStageFacts
) -> Cause | None:
    """KL weight too large: the posterior is the prior, and the decoder sees noise."""
    kl = metrics.get("val/kl")
    if kl is None or facts.num_latents is None or kl / facts.num_latents >= COLLAPSED_KL:
        return None
    used = "" if facts.kl_weight is None else f" (it was trained with {facts.kl_weight:g})"
    return Cause(
        "posterior_collapse",
        "The KL weight is too large: the posterior has collapsed to the prior and carries "
        f"{kl / facts.num_latents:.2g} nats a latent ({kl:.4g} an image; a good first stage "
        "carries 10 and more), so the decoder learns the mean.",
        f"Train it again with a smaller loss.kl_weight{used}; 1e-6 is published for "
        "loss.reduction=sum.",
    )


def _codebook_collapse(
    metrics: Mapping[str, float], failed: Set[str], facts: FirstStageFacts
) -> Cause | None:
    """Few codes carry everything."""
    usage = metrics.get("val/codebook_usage")
    perplexity = metrics.get("val/codebook_perplexity")
    if facts.num_codes is None:
        return None
    reachable = min(facts.num_codes, facts.num_positions or facts.num_codes)
    few = perplexity is not None and perplexity < COLLAPSED_FRACTION * reachable
    if not few and failed.isdisjoint(("val/codebook_usage", "val/codebook_perplexity")):
        return None
    shown = [
        "" if usage is None else f"val/codebook_usage is {usage:.3g}",
        "" if perplexity is None else f"val/codebook_perplexity {perplexity:.4g}",
    ]
    return Cause(
        "codebook_collapse",
        f"The codebook has collapsed: {' and '.join(filter(None, shown))} of {facts.num_codes} "
        "codes.",
        "Train it again with codes placed by k-means (bottleneck.quantize_start_step=300), "
        "restarts of dead codes (bottleneck.restart_every_steps=100), or fewer codes "
        "(bottleneck.num_codes).",
    )


def _scale(metrics: Mapping[str, float], failed: Set[str], facts: FirstStageFacts) -> Cause | None:
    """Latents so large or small that numbers get lost; a normalizer undoes anything in between."""
    std = metrics.get("latent/std")
    if "latent/std" not in failed or std is None:
        return None
    if std < 1:
        return Cause(
            "latents_vanish",
            f"The latents hardly differ: latent/std is {std:.3g}.",
            "The encoder tells images apart by rounding errors: lower loss.kl_weight or "
            "loss.commitment_weight and train it again.",
        )
    return Cause(
        "latents_explode",
        f"Nothing keeps the latents in range: latent/std is {std:.4g}.",
        "Train it again with a KL weight above zero (loss.kl_weight=1e-6) and a lower "
        "optim.learning_rate; if the reconstructions are good, the normalizer brings this scale to "
        "1 and latent/std's threshold may be raised.",
    )


def _other_images(
    metrics: Mapping[str, float], failed: Set[str], facts: FirstStageFacts
) -> Cause | None:
    """It is good at its own images and not at these."""
    psnr, before = metrics.get("val/psnr"), facts.trained.get("val/psnr")
    if psnr is None or before is None or facts.same_images or before - psnr < OTHER_IMAGES_DB:
        return None
    return Cause(
        "other_images",
        f"These are other images than it was trained on: val/psnr is {psnr:.4g} dB here and "
        f"{before:.4g} dB on those of its own validation.",
        "Train it on these images, starting from its weights (checkpoint=...).",
    )


def _poor_reconstruction(
    metrics: Mapping[str, float], failed: Set[str], facts: FirstStageFacts
) -> Cause | None:
    """Everything is in order, only the images are not good enough."""
    psnr = metrics.get("val/psnr")
    if psnr is None or "val/psnr" not in failed:
        return None
    shown = f"val/psnr is {psnr:.4g} dB"
    if facts.psnr_rise is not None and facts.psnr_rise > STILL_RISING_DB:
        return Cause(
            "undertrained",
            f"It was not trained to its end: {shown}, and rose by {facts.psnr_rise:.2g} dB between "
            "its last two validations.",
            "Train it longer (max_steps).",
        )
    if facts.downsampling_factor is not None and facts.downsampling_factor >= 16:
        return Cause(
            "too_compressed",
            f"{shown} with f = {facts.downsampling_factor}: too little of an image may fit into "
            "its latents.",
            "Use a smaller autoencoder.downsampling_factor, more autoencoder.latent_channels, or "
            "train longer.",
        )
    unsure = "" if facts.trained else (
        " There is no record of its training beside it, so damaged weights are not ruled out."
    )  # fmt: skip
    return Cause(
        "poor_reconstruction",
        f"{shown} and the latents look healthy: it is undertrained or too small.{unsure}",
        "Train it longer, with more autoencoder.base_width or autoencoder.latent_channels.",
    )


def _lost_texture(
    metrics: Mapping[str, float], failed: Set[str], facts: FirstStageFacts
) -> Cause | None:
    """Pixels agree and perception does not: blur."""
    perceptual = {"val/perceptual_tiny", "val/lpips", "val/lpips_vgg", "val/rfd_tiny", "val/rfid"}
    lost = sorted(perceptual & failed)
    if not lost or "val/psnr" in failed:
        return None
    shown = ", ".join(f"{name} is {metrics[name]:.4g}" for name in lost)
    return Cause(
        "lost_texture",
        f"Pixels agree on the whole and texture is lost (blur): {shown}.",
        "Raise loss.perceptual_weight, let the discriminator begin (loss.discriminator_start_*), "
        "or train longer.",
    )

"""Measure what latents of each shape hold of a set of images, before anything is trained.

    python -m ldm_lightning.floor data.root=PHOTOS
    python -m ldm_lightning.floor data.root=PHOTOS full=true

For each downsampling factor f and number of channels c a linear autoencoder is fitted to a sample
of the training images; its figures on the held-out images stand beside what a denoiser costs on
latents of that size. Processes that torchrun or srun starts share the held-out images.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from ldm_lightning.checks.keys import check_keys
from ldm_lightning.cli import handle_user_errors, quiet_lightning, run_entry_point, run_lock
from ldm_lightning.config import CONF_DIR
from ldm_lightning.distributed.processes import end_with_parent
from ldm_lightning.utils.launch import launched

if TYPE_CHECKING:
    from ldm_lightning.evaluation.floors import MeasuredFloor
    from ldm_lightning.planning.denoiser_cost import DenoiserDescription
    from ldm_lightning.reporting.floors import FloorRow

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="floor")
def _floor(cfg: DictConfig) -> None:
    with handle_user_errors():
        runtime = HydraConfig.get().runtime
        check_keys(cfg, runtime.choices, command="floor")
        floor(cfg, Path(runtime.output_dir), scale=str(runtime.choices["scale"]))


def floor(cfg: DictConfig, folder: Path, *, scale: str) -> list[FloorRow]:
    """Fit, measure, print; write ``floor.csv``, ``floor.json`` and ``floor.png``.

    Args:
        cfg: The composed configuration.
        folder: Is written to.
        scale: Of the denoiser whose cost is counted.

    Returns:
        One row a latent shape.

    Raises:
        ValueError: If a list is empty, or no factor divides the images.
    """
    quiet_lightning()
    factors = _dividing_factors(cfg)
    from ldm_lightning.planning.denoiser_cost import describe_denoiser
    from ldm_lightning.runs.run_folder import RunFolder
    from ldm_lightning.utils.collectives import joined_processes

    denoiser = describe_denoiser(str(cfg.second_stage), scale=scale)
    run_folder, is_first = RunFolder.create(folder, folders=[]), launched().is_first
    with run_lock(run_folder, is_first=is_first), joined_processes():
        measured, facts = _measure(cfg, factors)
        rows = _rows(cfg, measured, denoiser)
        if is_first:
            _tell(rows, facts, denoiser, run_folder.path)
    return rows


def _dividing_factors(cfg: DictConfig) -> list[int]:
    """The downsampling factors that divide the images; says which do not.

    Raises:
        ValueError: If there are none, or another list is empty.
    """
    for key in ("downsampling_factors", "latent_channels", *(["num_codes"] if cfg.full else [])):
        if not cfg[key]:
            raise ValueError(f"{key}=[] leaves nothing to measure: give at least one number.")
    if cfg.full and min(cfg.num_codes) < 2:
        raise ValueError(f"num_codes={list(cfg.num_codes)}: a codebook has at least 2 codes.")
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise ValueError(f"No value for {missing[0]}: give {missing[0]}=VALUE.")
    size = [cfg.resolution] * 2 if isinstance(cfg.resolution, int) else list(cfg.resolution)
    given = sorted(set(cfg.downsampling_factors))
    kept = [factor for factor in given if not any(side % factor for side in size)]
    if not kept:
        raise ValueError(
            f"resolution={cfg.resolution} is divisible by none of downsampling_factors={given}; "
            "give others, or another resolution."
        )
    if (left_out := sorted(set(given) - set(kept))) and launched().is_first:
        log.warning(
            "Left out: f %s, which does not divide images of %dx%d.",
            ", ".join(map(str, left_out)),
            *size,
        )
    return kept


def _measure(cfg: DictConfig, factors: Sequence[int]) -> tuple[list[MeasuredFloor], dict[str, Any]]:
    """Fit and measure every shape; and say on which images."""
    from ldm_lightning.autoencoder.linear_fit import sample_size
    from ldm_lightning.builders.data import build_images
    from ldm_lightning.builders.training import build_features
    from ldm_lightning.evaluation.floors import fit_floors, measure_floors

    features = build_features(cfg) if cfg.full else None
    data = build_images(cfg)
    sample = data.training_sample(sample_size(data.resolution))
    floors = fit_floors(
        sample,
        downsampling_factors=factors,
        latent_channels=sorted(set(cfg.latent_channels)),
        num_codes=sorted(set(cfg.num_codes)) if cfg.full else [],
        seed=cfg.seed,
    )
    protocol = data.protocol("val")
    measured = measure_floors(floors, data, features, protocol=protocol)
    facts = {
        "images": protocol,
        "num_measured": measured[0].num_images,
        "num_fitted": len(sample),
        "seed": cfg.seed,
        "features": None if features is None else features.name,
    }
    return measured, facts


def _rows(
    cfg: DictConfig, measured: Sequence[MeasuredFloor], denoiser: DenoiserDescription
) -> list[FloorRow]:
    """Put the cost of the denoiser beside what was measured."""
    from ldm_lightning.data.transforms import as_size
    from ldm_lightning.planning.denoiser_cost import denoiser_flops
    from ldm_lightning.reporting.floors import FloorRow

    height, width = as_size(cfg.resolution)
    own = denoiser.downsampling_factor
    factors = {one.shape.downsampling_factor for one in measured} | {own}
    flops = {
        factor: denoiser_flops(denoiser, height=height // factor, width=width // factor)
        for factor in factors
        if not (height % factor or width % factor)
    }
    rows = []
    for one in measured:
        factor, channels = one.shape.downsampling_factor, one.shape.latent_channels
        cost, reference = flops[factor], flops.get(own)
        rows.append(
            FloorRow(
                downsampling_factor=factor,
                latent_channels=channels,
                num_codes=one.shape.num_codes,
                latent_height=height // factor,
                latent_width=width // factor,
                compression=cfg.image_channels * factor**2 / channels,
                denoiser_flops=cost,
                denoiser_relative=None if cost is None or not reference else cost / reference,
                scalars=one.scalars,
            )
        )
    return rows


def _tell(
    rows: Sequence[FloorRow],
    facts: dict[str, Any],
    denoiser: DenoiserDescription,
    folder: Path,
) -> None:
    """Print the table, and write it and the figure."""
    from ldm_lightning.reporting.floors import draw_floors, print_floors, write_csv
    from ldm_lightning.utils.metadata import count_told

    told = count_told(facts["images"])
    title = f"Linear floor on {told} of {facts['images']['resolution']}"
    print_floors(
        rows,
        title=f"{title}; U-Net of {denoiser.experiment}",
        own_factor=denoiser.downsampling_factor,
    )
    facts = {
        **facts,
        "denoiser": {"experiment": denoiser.experiment, **denoiser.node},
        "rows": [row.values() for row in rows],
    }
    text = json.dumps(facts, indent=1) + "\n"
    (folder / "floor.json").write_text(text, encoding="utf-8")
    write_csv(rows, folder / "floor.csv")
    draw_floors(rows, folder / "floor.png", title=title)
    for name in ("floor.csv", "floor.json", "floor.png"):
        log.info("%s", folder / name)


def main() -> None:
    """Entry point of ``ldm-floor`` and ``python -m ldm_lightning.floor``."""
    end_with_parent()
    run_entry_point(_floor)


if __name__ == "__main__":
    main()

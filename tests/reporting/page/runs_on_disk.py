"""Run folders as training leaves them, written in milliseconds."""

import os
from pathlib import Path
from typing import Any

import torch

from ldm_lightning.reporting.page.runs import Run
from ldm_lightning.runs.run_folder import RunFolder
from ldm_lightning.utils.image import save_grid
from ldm_lightning.utils.random import generator_for

PROTOCOL = {"data": "shapes", "split": "val", "num_images": 512, "images": "71cbf9bd30b9cd58"}

EVIL = "<img src=x onerror=alert(1)></script><script>alert(2)</script>\"'&{{ 7*7 }}"

METRICS = {"val/psnr": 25.0, "val/perceptual_tiny": 0.2, "val/rfd_tiny": 0.7, "val/kl": 2600.0}


def write_run(
    folder: Path,
    *,
    name: str = "kl_f8",
    state: str = "finished",
    kl_weight: float = 1e-6,
    factor: int = 8,
    channels: int = 4,
    seed: int = 0,
    metrics: dict[str, Any] | None = None,
    protocol: dict[str, Any] | None = None,
    written: float | None = None,
    **more: Any,
) -> Path:
    """Write a first-stage run; ``more`` goes into its summary as it is."""
    run = RunFolder.create(folder)
    values = METRICS if metrics is None else metrics
    run.update_summary(
        {
            "state": state,
            "name": name,
            "config": {
                "name": name,
                "stage": "first",
                "seed": seed,
                "resolution": 32,
                "image_channels": 3,
                "output_dir": str(folder),
                "data": {"seed": seed},
                "autoencoder": {"downsampling_factor": factor, "latent_channels": channels},
                "bottleneck": {"_target_": "ldm_lightning.bottleneck.gaussian.GaussianBottleneck"},
                "loss": {"kl_weight": kl_weight},
            },
            "metrics": values,
            "protocol": {metric: protocol or PROTOCOL for metric in values},
            "device": "cpu (2 threads)",
            "step": 100,
            "timing": {"total_s": 90.0},
            **more,
        }
    )
    if written is not None:
        os.utime(run.summary, (written, written))
    return run.path


def write_curves(folder: Path, *, num_rows: int = 50) -> None:
    """Write a ``metrics.csv`` of a falling loss and a rising PSNR."""
    rows = [f"{step},train/loss_total,{1 / step}" for step in range(1, num_rows + 1)]
    rows += [f"{step},val/psnr,{20 + step / 10}" for step in range(10, num_rows + 1, 10)]
    text = "\n".join(["step,metric,value", *rows]) + "\n"
    (folder / "metrics.csv").write_text(text, encoding="utf-8")


def random_images(number: int, size: int, *, seed: int = 0) -> torch.Tensor:
    """Images of noise in [-1, 1], [number, 3, size, size]."""
    generator = generator_for("test pictures", seed)
    return torch.rand((number, 3, size, size), generator=generator) * 2 - 1


def write_reconstructions(
    folder: Path, *, images: torch.Tensor, reconstructions: torch.Tensor
) -> None:
    """Draw the grid that a validation draws: input, reconstruction, error."""
    grid = torch.cat([images, reconstructions, (images - reconstructions).abs() * 4 - 1])
    path = folder / "images" / "reconstruction_latest.png"
    save_grid(grid, path, num_columns=len(images))


def write_sweep(folder: Path) -> None:
    """Three KL weights by two factors, with pictures and curves; one run failed, one is running."""
    images = random_images(4, 32)
    for index in range(6):
        weight, factor = (1e-6, 1e-4, 1e-2)[index % 3], (4, 8)[index // 3]
        metrics = {name: value * (1 + index / 10) for name, value in METRICS.items()}
        run = write_run(
            folder / f"{index}_abc",
            kl_weight=weight,
            factor=factor,
            metrics=metrics,
            written=1000.0 + index,
        )
        reconstructions = images + 0.1 * random_images(4, 32, seed=index + 1)
        write_reconstructions(run, images=images, reconstructions=reconstructions.clamp(-1, 1))
        write_curves(run)
    write_run(folder / "6_bad", state="failed", reason="ValueError: too bad", metrics={})
    write_run(folder / "7_on", state="running", metrics={"val/psnr": 3.0})


def example_run(number: int, **changes: Any) -> Run:
    """A run without a folder."""
    values: dict[str, Any] = {
        "number": number,
        "folder": Path("nowhere"),
        "place": f"run_{number}",
        "name": "kl_f8",
        "kind": "first stage",
        "state": "finished",
        "reason": "",
        "settings": {},
        "metrics": {},
        "protocols": {},
        "device": "cpu",
        "seconds": 1.0,
        "step": 1,
        "written": float(number),
    }
    return Run(**{**values, **changes})


def run_with(
    number, *, factor=8, channels=4, metrics=None, protocol=None, state="finished", **more
):
    """A run of one autoencoder shape; ``more`` are settings by dotted key."""
    metrics = {"val/psnr": 25.0} if metrics is None else metrics
    return example_run(
        number,
        state=state,
        metrics=metrics,
        protocols={name: protocol or {"num_images": 512} for name in metrics},
        settings={
            "autoencoder.downsampling_factor": factor,
            "autoencoder.latent_channels": channels,
            **more,
        },
    )

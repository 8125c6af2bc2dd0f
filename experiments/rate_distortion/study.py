"""A study: reconstruction quality against the size of latents, and the cost of a U-Net on them.

    python -m experiments.rate_distortion.study --train PHOTOS --held-out HELD_OUT
    python -m experiments.rate_distortion.study

The second, without data, makes table and figures from the csv files alone.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from experiments.rate_distortion.figures import Shape, draw_kl_weights, draw_rates
from experiments.study import (
    ORIGIN,
    Row,
    fill,
    given_paths,
    markdown_table,
    picked,
    read_rows,
    run,
    run_folders,
    run_once,
    spread,
    summary,
    write_rows,
)

HERE = Path(__file__).parent
WORK = Path("outputs/rate_distortion")
SWEEP = Path("outputs/sweeps/rate_distortion")

KL_WEIGHTS = ("1e-06", "0.01", "1")
NUM_IMAGES = 1600

TRAINING = (
    "experiment=kl_f8",
    "data=image_folder",
    "max_steps=1000",
    "validation.every_steps=250",
    "trainer=cpu",
    "discriminator=none",
    "sweep_name=rate_distortion",
    "hydra.launcher.n_jobs=2",
    "hydra.launcher.threads=1",
)
SWEEPS = (
    # The question: KL weight by downsampling factor.
    ("autoencoder.downsampling_factor=4,8,16", "loss.kl_weight=1e-6,1e-2,1"),
    # More channels for the larger factors.
    ("autoencoder.downsampling_factor=8,16", "autoencoder.latent_channels=8,16"),
    # How far two seeds are apart.
    ("autoencoder.downsampling_factor=4,8,16", "seed=1"),
)

COLUMNS = {
    "factor": "config > autoencoder > downsampling_factor",
    "channels": "config > autoencoder > latent_channels",
    "kl_weight": "config > loss > kl_weight",
    "psnr": "metrics > test/psnr",
    "ssim": "metrics > test/ssim",
    "perceptual_tiny": "metrics > test/perceptual_tiny",
    "rfd_tiny": "metrics > test/rfd_tiny",
    "high_frequency_deficit": "metrics > test/high_frequency_deficit",
    "kl_nats": "metrics > test/kl",
    "latent_std": "metrics > latent/std",
    "encode_images_per_s": "metrics > perf/encode_images_per_s",
    "decode_images_per_s": "metrics > perf/decode_images_per_s",
    "num_images": "protocol > test/psnr > num_images",
    "parameters": "parameters > autoencoder",
    **ORIGIN,
}


def main() -> None:
    """Run what is missing where data are given, then write table and figures."""
    given = given_paths(
        __doc__, train="photographs to train on", held_out="photographs to measure on"
    )
    if given:
        compute(**given)
    tell(HERE)


def compute(train: Path, held_out: Path) -> None:
    """Train, measure and count what is missing; write results.csv and unets.csv."""
    data = (f"data.root={train}", f"data.val_root={held_out}")
    for swept in SWEEPS:
        run("train", ["-m", *TRAINING, *swept, *data])
    rows = []
    for folder in run_folders(SWEEP):
        measured = WORK / "evaluation" / folder.name
        words = [f"checkpoint={folder}", "data=image_folder", *data]
        words += ["features=tiny", "eval_crop=crops", f"data.max_val_images={NUM_IMAGES}"]
        run_once("evaluate", [*words, f"output_dir={measured}"], makes=measured / "summary.json")
        trained = summary(folder)
        rows.append(
            picked(
                {
                    **trained,
                    **json.loads((measured / "summary.json").read_text()),
                    "config": trained["config"],
                    "device": trained["device"],
                    "commit": trained["commit"],
                },
                COLUMNS,
            )
        )
    rows.sort(key=_order)
    write_rows(HERE / "results.csv", rows)
    shapes = sorted({(int(row["factor"]), int(row["channels"])) for row in rows})
    write_rows(HERE / "unets.csv", [_count_unet(factor, channels) for factor, channels in shapes])


def _order(row: Row) -> tuple[float, ...]:
    return tuple(float(row[key]) for key in ("factor", "channels", "kl_weight", "seed"))


def _count_unet(factor: int, channels: int) -> Row:
    plan = WORK / f"plan_f{factor}_c{channels}.json"
    words = ["experiment=ldm_kl_f8", "scale=paper", "features=tiny", "resolution=256"]
    words += [f"first_stage.experiment=kl_f{factor}", f"downsampling_factor={factor}"]
    words += [f"latent_channels={channels}", "measure=false", f"output={plan}"]
    run_once("plan", words, makes=plan)
    facts = json.loads(plan.read_text())
    return {
        "factor": str(factor),
        "channels": str(channels),
        "parameters": str(facts["parameters"]["denoiser"]),
        "gflops": f"{facts['denoiser_in']['latents']['forward_flops'] / 1e9:.4g}",
        "kept_mib": f"{facts['denoiser_in']['latents']['kept_bytes_float32'] / 2**20:.4g}",
    }


# Telling


def tell(folder: Path) -> None:
    """Write the README's table and the figures from results.csv and unets.csv."""
    rows, shapes = read_rows(HERE / "results.csv"), _shapes()
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    (folder / "README.md").write_text(
        fill(readme, "results", table(rows, shapes)), encoding="utf-8"
    )
    draw_rates(rows, shapes, folder / "rate_distortion.png")
    draw_kl_weights(rows, folder / "kl_weight.png")


def _shapes() -> dict[tuple[str, str], Shape]:
    return {
        (row["factor"], row["channels"]): Shape(
            int(row["factor"]), int(row["channels"]), int(row["parameters"]), float(row["gflops"])
        )
        for row in read_rows(HERE / "unets.csv")
    }


def _grouped(rows: Iterable[Row]) -> dict[tuple[str, ...], list[Row]]:
    """Rows that differ in their seed alone."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("factor", "channels", "kl_weight"))
        groups.setdefault(key, []).append(row)
    return groups


def table(rows: list[Row], shapes: dict[tuple[str, str], Shape]) -> str:
    """One line a configuration; seeds as mean and spread."""
    head = (
        *("f", "channels", "KL weight", "numbers per pixel", "PSNR", "SSIM"),
        *("perceptual_tiny", "rfd_tiny", "high-frequency deficit", "KL, nats", "latent std"),
        *("scale factor", "encode, decode images/s", "U-Net GFLOPs"),
    )
    lines = []
    for (factor, channels, kl_weight), group in _grouped(rows).items():
        shape = shapes[factor, channels]
        std = sum(float(row["latent_std"]) for row in group) / len(group)
        lines.append(
            (
                *(factor, channels, f"{float(kl_weight):g}"),
                f"{shape.numbers_per_pixel:.3g}",
                spread(group, "psnr", digits=2),
                spread(group, "ssim", digits=3),
                spread(group, "perceptual_tiny", digits=3),
                spread(group, "rfd_tiny", digits=2),
                spread(group, "high_frequency_deficit", digits=2),
                spread(group, "kl_nats", digits=0),
                f"{std:.2f}",
                f"{1 / std:.3f}",
                f"{spread(group[:1], 'encode_images_per_s', digits=0)}, "
                f"{spread(group[:1], 'decode_images_per_s', digits=0)}",
                f"{shape.gflops:.3g}",
            )
        )
    return markdown_table(head, lines)


if __name__ == "__main__":
    main()

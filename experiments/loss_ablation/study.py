"""A study: what each term of a first stage's loss does to sharpness, and costs in PSNR.

    python -m experiments.loss_ablation.study --train PHOTOS --held-out HELD_OUT
    python -m experiments.loss_ablation.study

The second, without data, makes tables and figures from the csv files alone.
"""

from pathlib import Path
from typing import Any

from experiments.loss_ablation.copies import measure_copies
from experiments.loss_ablation.figures import draw_blur, draw_crops, draw_plane
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
    summary,
    write_rows,
)
from ldm_lightning.data.image_module import ImageDataModule
from ldm_lightning.data.images.image_folder import image_folder_data_module
from ldm_lightning.data.shapes.module import shapes_data_module

HERE = Path(__file__).parent
WORK = Path("outputs/loss_ablation")
SWEEP = Path("outputs/sweeps/loss_ablation")

RESOLUTION = 32
NUM_IMAGES = 1600

SEED_OF_CROPS = 1
"""All of its runs have learned colors; see README.md about the other."""

VARIANTS = {
    "L2": ("loss.pixel=l2", "loss.perceptual_weight=0", "discriminator=none"),
    "L1": ("loss.pixel=l1", "loss.perceptual_weight=0", "discriminator=none"),
    "L1 + perceptual": ("loss.pixel=l1", "discriminator=none"),
    "L1 + perceptual + GAN": (
        "loss.pixel=l1",
        "loss.adversarial_weight=0.5",
        "loss.discriminator_start_fraction=0.4",
    ),
}
TRAINING = (
    "experiment=kl_f4",
    "data=image_folder",
    "data.batch_size=8",
    "data.num_workers=1",
    f"data.max_val_images={NUM_IMAGES}",
    f"resolution={RESOLUTION}",
    "max_steps=3000",
    "validation.every_steps=1500",
    "optim.learning_rate=1e-3",
    "seed=0,1",
    "trainer=cpu",
    "sweep_name=loss_ablation",
    "hydra.launcher.n_jobs=2",
    "hydra.launcher.threads=1",
)

COLUMNS = {
    "variant": "variant",
    "psnr": "metrics > val/psnr",
    "ssim": "metrics > val/ssim",
    "perceptual_tiny": "metrics > val/perceptual_tiny",
    "rfd_tiny": "metrics > val/rfd_tiny",
    "high_frequency_deficit": "metrics > val/high_frequency_deficit",
    "power_ratio_octave_1": "metrics > val/power_ratio_octave_1",
    "power_ratio_octave_2": "metrics > val/power_ratio_octave_2",
    "power_ratio_octave_3": "metrics > val/power_ratio_octave_3",
    "num_images": "protocol > val/psnr > num_images",
    **ORIGIN,
}


def main() -> None:
    """Run what is missing where data are given, then write tables and figures."""
    given = given_paths(
        __doc__, train="photographs to train on", held_out="photographs to measure on"
    )
    if given:
        compute(**given)
    tell(HERE)


def compute(train: Path, held_out: Path) -> None:
    """Train what is missing, damage and measure the held-out images; write both csv files.

    Crops of the photographs are drawn into the folder of the runs; those of the README show the
    embedded shapes, which nothing here was trained on.
    """
    for words in VARIANTS.values():
        run("train", ["-m", *TRAINING, *words, f"data.root={train}", f"data.val_root={held_out}"])
    photographs = _photographs(train, held_out)
    write_rows(HERE / "copies.csv", measure_copies(photographs))
    rows: list[Row] = []
    checkpoints: dict[str, Path] = {}
    for folder in run_folders(SWEEP):
        trained = summary(folder)
        variant = _variant(trained)
        rows.append(picked({**trained, "variant": variant}, COLUMNS))
        if trained["config"]["seed"] == SEED_OF_CROPS:
            checkpoints[variant] = folder / "checkpoints" / "last.ckpt"
    rows.sort(key=lambda row: (list(VARIANTS).index(row["variant"]), int(row["seed"])))
    write_rows(HERE / "results.csv", rows)
    checkpoints = {variant: checkpoints[variant] for variant in VARIANTS}
    draw_crops(checkpoints, _shapes(), HERE / "crops.png")
    draw_crops(checkpoints, photographs, WORK / "photographs.png")


def _variant(trained: dict[str, Any]) -> str:
    """The one of ``VARIANTS`` that a run is, from what it recorded of itself."""
    loss = trained["config"]["loss"]
    terms = [loss["pixel"].upper()]
    terms += ["perceptual"] if loss["perceptual_weight"] > 0 else []
    terms += ["GAN"] if "discriminator" in trained["parameters"] else []
    return " + ".join(terms)


def _photographs(train: Path, held_out: Path) -> ImageDataModule:
    """The held-out windows that the runs are validated on."""
    return image_folder_data_module(
        root=str(train),
        val_root=str(held_out),
        val_fraction=0.05,
        resolution=RESOLUTION,
        image_channels=3,
        train_crop="random",
        crop_scale=(0.8, 1.0),
        flip=True,
        eval_crop="crops",
        val_crops_per_image=16,
        max_bad_fraction=0.05,
        batch_size=8,
        val_batch_size=64,
        num_workers=0,
        max_val_images=NUM_IMAGES,
        seed=0,
    )


def _shapes() -> ImageDataModule:
    """Shapes over textures."""
    return shapes_data_module(
        resolution=RESOLUTION,
        image_channels=3,
        textures=True,
        num_train_images=64,
        num_val_images=64,
        batch_size=8,
        val_batch_size=64,
        num_workers=0,
        max_val_images=None,
        seed=0,
    )


# Telling


def tell(folder: Path) -> None:
    """Write the README's tables and the figures from results.csv and copies.csv."""
    rows, copies = read_rows(HERE / "results.csv"), read_rows(HERE / "copies.csv")
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    readme = fill(readme, "results", table(rows))
    readme = fill(readme, "copies", copies_table(copies))
    (folder / "README.md").write_text(readme, encoding="utf-8")
    draw_blur(rows, copies, folder / "blur.png")
    draw_plane(rows, copies, folder / "perception_distortion.png")


def table(rows: list[Row]) -> str:
    """One line a variant; a cell holds its seeds in their order."""
    columns = (
        ("PSNR", "psnr", 2),
        ("SSIM", "ssim", 3),
        ("perceptual_tiny", "perceptual_tiny", 3),
        ("rfd_tiny", "rfd_tiny", 2),
        ("high-frequency deficit", "high_frequency_deficit", 2),
        ("octave 1", "power_ratio_octave_1", 3),
        ("octave 2", "power_ratio_octave_2", 2),
        ("octave 3", "power_ratio_octave_3", 2),
        ("minutes", "minutes", 0),
    )
    lines = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        group = [row for row in rows if row["variant"] == variant]
        cells = [
            ", ".join(f"{float(row[column]):.{digits}f}" for row in group)
            for _, column, digits in columns
        ]
        lines.append((variant, *cells))
    return markdown_table(("loss", *(name for name, _, _ in columns)), lines)


def copies_table(copies: list[Row]) -> str:
    """One line a blur, with the noisy copies of its PSNR beside it."""
    names = ("ssim", "perceptual_tiny", "rfd_tiny", "high_frequency_deficit")
    head = ["blur sigma, pixels", "PSNR"]
    head += [f"{kind}: {name}" for kind in ("blurred", "noisy") for name in names]
    by_kind = {(row["kind"], row["sigma"]): row for row in copies}
    lines = []
    for sigma in dict.fromkeys(row["sigma"] for row in copies):
        blurred, noisy = by_kind["blurred", sigma], by_kind["noisy", sigma]
        figures = [f"{float(row[name]):.3f}" for row in (blurred, noisy) for name in names]
        lines.append((sigma, f"{float(blurred['psnr']):.2f}", *figures))
    return markdown_table(head, lines)


if __name__ == "__main__":
    main()

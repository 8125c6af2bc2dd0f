"""A study: how far a first stage bounds the diffusion model trained on its latents.

    python -m experiments.first_stage_bounds_ldm.study --cifar10 SHARDS --judge JUDGE
    python -m experiments.first_stage_bounds_ldm.study

The second, without data, makes table and figure from results.csv alone.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from experiments.first_stage_bounds_ldm.figures import by_kind, draw_bounds, draw_samples
from experiments.study import (
    Row,
    fill,
    given_paths,
    markdown_table,
    picked,
    read_rows,
    run,
    run_folders,
    spread,
    summary,
    write_rows,
)

HERE = Path(__file__).parent
SWEEP = Path("outputs/sweeps/first_stage_bounds_ldm")

KINDS = {
    "bounds_vae": "plain VAE",
    "bounds_kl": "KL, no GAN",
    "bounds_kl_gan": "KL with GAN",
    "bounds_vq_vae": "VQ-VAE",
    "bounds_vqgan": "VQGAN",
}
"""The first stages, by experiment (conf/experiment beside this file); latents are 4 x 8 x 8."""

CHAINS = (
    "-m",
    "--config-dir",
    str(HERE / "conf"),
    "experiment=ldm_kl_f4",
    f"first_stage.experiment={','.join(KINDS)}",
    "seed=0,1",
    "sweep_name=first_stage_bounds_ldm",
    "hydra.launcher.n_jobs=2",
    "hydra.launcher.threads=1",
    "trainer=cpu",
    "data=webdataset",
    "data.max_val_images=2000",
    "resolution=32",
    "samples.num_samples=2000",
    # The first stages, 1,200 updates each, and ...
    "first_stage.overrides=['max_steps=1200','validation.every_steps=600','data.batch_size=16']",
    # ... the diffusion model on each; a first stage that is bad is no reason to stop here.
    "gate.mode=warn",
    "conditioner=class_label",
    "diffusion=flow",
    "sampler=euler",
    "sampler.num_steps=25",
    "sampler.guidance_scale=2",
    "denoiser.base_width=48",
    "denoiser.head_width=24",
    "denoiser.num_res_blocks=1",
    "denoiser.scale_shift_norm=true",
    "max_steps=1500",
    "validation.every_steps=750",
    "validation.num_samples=64",
    "monitor=val/loss",
)

COLUMNS = {
    "first_stage": "first_stage",
    "psnr": "chain > metrics > test/psnr",
    "ssim": "chain > metrics > test/ssim",
    "perceptual_tiny": "chain > metrics > test/perceptual_tiny",
    "rfd_tiny": "chain > metrics > test/rfd_tiny",
    "high_frequency_deficit": "chain > metrics > test/high_frequency_deficit",
    "codebook_perplexity": "chain > metrics > test/codebook_perplexity",
    "latent_std": "chain > metrics > latent/std",
    "fd_tiny": "chain > metrics > gen/fd_tiny",
    "kd_tiny": "chain > metrics > gen/kd_tiny",
    "precision_tiny": "chain > metrics > gen/precision_tiny",
    "recall_tiny": "chain > metrics > gen/recall_tiny",
    "prior_fd_tiny": "chain > metrics > prior/fd_tiny",
    "fd_judge": "judged > sets > samples > fd_judge",
    "class_accuracy": "judged > sets > samples > class_accuracy > accuracy",
    "val_loss": "second > metrics > val/loss",
    "num_images": "chain > protocol > gen/fd_tiny > num_images",
    "first_stage_minutes": "first_stage_minutes",
    "second_stage_minutes": "second_stage_minutes",
    "threads": "second > num_threads",
    "seed": "second > config > seed",
    "device": "second > device",
    "commit": "second > commit",
}


def main() -> None:
    """Run what is missing where data are given, then write table and figures."""
    given = given_paths(
        __doc__,
        cifar10="folder of train-*.tar and test-*.tar",
        judge="weights made by cifar10_ldm/judge.py train",
    )
    if given:
        compute(**given)
    tell(HERE)


def compute(cifar10: Path, judge: Path) -> None:
    """Train ten chains, judge their samples; write results.csv, samples.png."""
    run("pipeline", [*CHAINS, f"data.root={cifar10}"])
    rows = []
    for folder in run_folders(SWEEP):
        first, second = summary(folder / "first_stage"), summary(folder / "second_stage")
        facts = {
            "chain": summary(folder),
            "second": second,
            "judged": _judged(folder, cifar10, judge),
            "first_stage": KINDS[first["name"]],
            "first_stage_minutes": first["minutes"],
            "second_stage_minutes": second["minutes"],
        }
        rows.append(picked(facts, COLUMNS))
    order = list(KINDS.values())
    rows.sort(key=lambda row: (order.index(row["first_stage"]), row["seed"]))
    write_rows(HERE / "results.csv", rows)
    draw_samples(_of_first_seed(run_folders(SWEEP)), HERE / "samples.png")


def _of_first_seed(chains: list[Path]) -> dict[str, Path]:
    """The chain of seed 0 of each first stage, in the order of ``KINDS``."""
    found = {}
    for chain in chains:
        first = summary(chain / "first_stage")
        if first["config"]["seed"] == 0:
            found[KINDS[first["name"]]] = chain
    return {kind: found[kind] for kind in KINDS.values()}


def _judged(chain: Path, cifar10: Path, judge: Path) -> dict[str, Any]:
    """A classifier's reading of the samples that no first stage was trained with."""
    out = chain / "judged.json"
    if not out.exists():
        script = HERE.parent / "cifar10_ldm" / "judge.py"
        words: list[str | Path] = ["--weights", judge, "--data", cifar10, "--out", out]
        words += ["--samples", chain / "samples"]
        subprocess.run([sys.executable, script, "measure", *words], check=True)
    return json.loads(out.read_text(encoding="utf-8"))


# Telling


def tell(folder: Path) -> None:
    """Write the README's table and the figure from results.csv."""
    rows = read_rows(HERE / "results.csv")
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    (folder / "README.md").write_text(fill(readme, "results", table(rows)), encoding="utf-8")
    draw_bounds(rows, folder / "ceiling.png")


def table(rows: list[Row]) -> str:
    """One line a first stage; two seeds as mean and spread."""
    columns = (
        ("PSNR", "psnr", 2),
        ("perceptual_tiny", "perceptual_tiny", 3),
        ("high-frequency deficit", "high_frequency_deficit", 2),
        ("rfd_tiny: the ceiling", "rfd_tiny", 2),
        ("latent std", "latent_std", 2),
        ("perplexity", "codebook_perplexity", 0),
        ("fd_tiny of samples", "fd_tiny", 2),
        ("of decoded noise", "prior_fd_tiny", 2),
        ("fd_judge of samples", "fd_judge", 2),
        ("class read as asked", "class_accuracy", 2),
    )
    lines = [
        (kind, *(spread(group, column, digits=digits) for _, column, digits in columns))
        for kind, group in by_kind(rows).items()
    ]
    return markdown_table(("first stage", *(name for name, _, _ in columns)), lines)


if __name__ == "__main__":
    main()

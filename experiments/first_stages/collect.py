"""Collect the summaries of finished runs into results.csv.

python experiments/first_stages/collect.py outputs/NAME/RUN [...]
"""

import csv
import json
import sys
from pathlib import Path

METRICS = (
    "psnr",
    "ssim",
    "perceptual_tiny",
    "rfd_tiny",
    "kl",
    "codebook_usage",
    "codebook_perplexity",
)


def row(folder: Path) -> dict[str, object]:
    """One line of the table from a run folder."""
    summary = json.loads((folder / "summary.json").read_text())
    metrics, config = summary["metrics"], summary["config"]
    protocol = summary["protocol"]["val/psnr"]
    return {
        "experiment": summary["name"],
        "data": protocol["data"],
        "resolution": protocol["resolution"],
        "crop": protocol["crop"],
        "num_images": protocol["num_images"],
        "state": summary["state"],
        "updates": summary["step"],
        "batch_size": config["data"]["batch_size"],
        "minutes": round(summary["timing"]["total_s"] / 60, 1),
        "parameters": summary["parameters"]["autoencoder"],
        **{name: _rounded(metrics.get(f"val/{name}")) for name in METRICS},
        "latent_std": _rounded(metrics.get("latent/std")),
        "device": summary["device"],
        "commit": summary["commit"],
        "seed": config["seed"],
    }


def _rounded(value: float | None) -> float | str:
    return "" if value is None else float(f"{value:.4g}")


def main(folders: list[str]) -> None:
    """Write results.csv beside this file."""
    rows = [row(Path(folder)) for folder in folders]
    path = Path(__file__).with_name("results.csv")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"{len(rows)} runs -> {path}")


if __name__ == "__main__":
    main(sys.argv[1:])

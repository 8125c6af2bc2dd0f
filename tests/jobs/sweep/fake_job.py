"""A job that takes no time: leaves behind what a training would, and ends as its name says.

``name=`` is one of: finishes; raises, killed, waits, deaf (only when it is begun, not when it goes
on); refused (before it has written anything, unless ALL_WELL is set); meets (another one); late
(fails after it has finished); damaged (leaves half a summary); unlucky (fails at a low KL weight).
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from omegaconf import OmegaConf

from ldm_lightning.distributed.processes import end_with_parent
from ldm_lightning.runs.run_folder import RunFolder

MODULE = "tests.jobs.sweep.fake_job"
MAX_STEPS = 10
LOG_LINE = "Listing photographs"
FAILURE = "ValueError: no image"
REFUSAL = "ValueError: there is no photograph"


def main() -> None:
    end_with_parent()
    words = {word.partition("=")[0]: word.partition("=")[2] for word in sys.argv[1:]}
    run_folder = RunFolder.create(words["hydra.run.dir"])
    end = words.get("name", "finishes")
    note_start(run_folder.path)
    if end == "refused" and "ALL_WELL" not in os.environ:
        sys.stderr.write(f"{LOG_LINE}\n")
        sys.exit(REFUSAL)
    if "resume" not in words:
        config = {"monitor": "val/psnr", "max_steps": MAX_STEPS, "seed": words.get("seed", "0")}
        OmegaConf.save(OmegaConf.create(config), run_folder.config)
    run_folder.update_summary({"state": "running", "step": 3})
    (run_folder.checkpoints / "last.ckpt").touch()
    run_folder.metrics.write_text("step,metric,value\n3,train/loss_total,1.0\n5,train/lo")
    if end in ENDS and "resume" not in words:
        ENDS[end](run_folder)
    value = float(OmegaConf.load(run_folder.config).seed)
    run_folder.update_summary(
        {"state": "finished", "step": MAX_STEPS, "metrics": {"val/psnr": value}}
    )
    if end == "late":
        sys.exit("the page could not be drawn")


def note_start(folder: Path) -> None:
    """Add this start to starts.jsonl: words, environment, how many others run."""
    summaries = [json.loads(path.read_text()) for path in folder.parent.glob("*/summary.json")]
    start = {
        "words": sys.argv[1:],
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "beside": sum(summary["state"] == "running" for summary in summaries),
    }
    with (folder / "starts.jsonl").open("a") as file:
        file.write(json.dumps(start) + "\n")


def starts_of(folder: Path) -> list[dict]:
    """What ``note_start`` has written."""
    return [json.loads(line) for line in (folder / "starts.jsonl").read_text().splitlines()]


def raises(run_folder: RunFolder) -> None:
    run_folder.update_summary({"state": "failed", "reason": FAILURE})
    sys.exit(1)


def killed(run_folder: RunFolder) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def waits(run_folder: RunFolder) -> None:
    def save(number, frame):
        run_folder.update_summary({"state": "interrupted"})
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, save)
    time.sleep(60)
    raise AssertionError("nobody has ended this job")


def deaf(run_folder: RunFolder) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (run_folder.path / "deaf").touch()
    time.sleep(60)


def meets(run_folder: RunFolder) -> None:
    deadline = time.monotonic() + 30
    while len(list(run_folder.path.parent.glob("*/summary.json"))) < 2:
        assert time.monotonic() < deadline, "this job was alone"
        time.sleep(0.02)


def unlucky(run_folder: RunFolder) -> None:
    (word,) = (word for word in sys.argv if word.startswith("loss.kl_weight="))
    if float(word.partition("=")[2]) < 1e-5:
        raises(run_folder)


def damaged(run_folder: RunFolder) -> None:
    run_folder.summary.write_text('{"state": "run')
    sys.exit(1)


ENDS = {
    "raises": raises,
    "killed": killed,
    "waits": waits,
    "deaf": deaf,
    "meets": meets,
    "damaged": damaged,
    "unlucky": unlucky,
}

if __name__ == "__main__":
    main()

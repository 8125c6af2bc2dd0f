"""The demo: a whole chain, every step of it cut down to seconds."""

import json
import re
import shlex
import shutil

import pytest

from tests.cli.run import make_commands, process, summary_of, tiny
from tests.cli.second_stage import tiny_second


def demo() -> list[str]:
    """What ``make demo`` runs, after ``python``."""
    (line,) = [line for line in make_commands("demo") if "-m ldm_lightning" in line]
    return shlex.split(line)[1:]


@pytest.mark.slow
def test_the_demo_runs_goes_on_and_keeps_what_is_done(tmp_path):
    first = [word for word in tiny("kl_f4") if not word.startswith("experiment=")]
    second = [
        word
        for word in tiny_second(tmp_path, "ldm_shapes")
        if not word.startswith(("first_stage.", "data.", "trainer.precision="))
    ]
    words = [*demo(), *second, "data.num_train_images=22", "data.num_val_images=10"]
    words += ["data.batch_size=4", "data.val_batch_size=4", "samples.num_samples=4"]
    words.append(f"first_stage.overrides={json.dumps(first)}")
    chain = tmp_path / "chain"
    ended = process([*words, f"output_dir={chain}"], tmp_path, timeout=400)
    assert ended.code == 0, ended.output
    for name in ("samples_latest", "ceiling", "prior"):
        assert (chain / "second_stage" / "images" / f"{name}.png").is_file()
    assert len(list((chain / "samples/images").glob("*.png"))) == 4
    summary = summary_of(chain)
    assert summary["state"] == "finished"
    assert {"gen/fd_tiny", "prior/fd_tiny", "test/psnr"} <= summary["metrics"].keys()
    # continued, it makes only what is missing
    shutil.rmtree(chain / "evaluation")
    kept = (chain / "second_stage/checkpoints/last.ckpt").stat().st_mtime_ns
    ended = process(["-m", "ldm_lightning.pipeline", f"resume={chain}"], tmp_path, timeout=400)
    assert ended.code == 0, ended.output
    assert len(re.findall(r"\d/8 \w+: done", ended.said)) == 7
    assert (chain / "second_stage/checkpoints/last.ckpt").stat().st_mtime_ns == kept
    assert summary_of(chain)["metrics"] == summary["metrics"]

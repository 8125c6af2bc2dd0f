"""Two gloo processes equal one: losses, gradients, weights, codebook, metrics, to 1e-10.

In float64, because in float32 the order of a sum alone grows to 1e-2 over some updates of a game
between two networks; there the first update must agree to 1e-5. The experiments are the real ones
at a tiny size. Both sides see the same eight images an update.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ldm_lightning.builders.hardware import trainer_settings
from ldm_lightning.checkpoints.checkpoint import load_checkpoint
from ldm_lightning.reporting.metrics_file import read_metrics
from ldm_lightning.runs.run_folder import RunFolder
from tests.distributed.two_processes import SCENARIOS, train, words_of
from tests.module.composed import compose_tiny, overrides_of

ROOT = Path(__file__).resolve().parents[2]
BATCH_NORM = ("kl_f8", "discriminator.normalization=batch", "loss.discriminator_start_steps=0")
ADVERSARIAL_WEIGHT = {"kl_f8": 0.5, "vqgan_f16": 0.8}
NUM_ADVERSARIAL_UPDATES = {"kl_f8": 7, "vqgan_f16": 10}  # in which the generator hears of it

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(arguments, log: Path, *, cwd: Path, **variables) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **variables}
    with log.open("w") as output:
        return subprocess.Popen(
            [sys.executable, *arguments],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
        )


def finish(processes: list[subprocess.Popen], logs: list[Path]) -> None:
    try:
        codes = [process.wait(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(codes), "\n".join(log.read_text()[-3000:] for log in logs)


def trained_by_two(names, folder: Path) -> dict[str, list[dict]]:
    """What each of two processes saw of each scenario."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = ["-m", "tests.distributed.two_processes", str(folder), *names]
    logs = [folder / f"rank{rank}.log" for rank in range(2)]
    processes = [
        start(command, log, cwd=folder, LOCAL_RANK=str(rank), **shared)
        for rank, log in enumerate(logs)
    ]
    finish(processes, logs)
    return {
        name: [torch.load(folder / f"{name}_{rank}.pt", weights_only=True) for rank in range(2)]
        for name in names
    }


def logged(folder: Path) -> dict[tuple[int, str], float]:
    """Every number in metrics.csv by update and name."""
    rows = read_metrics(RunFolder(folder).metrics)
    values = {(step, name): value for step, name, value in rows}
    assert len(values) == len(rows)  # one process writes
    return values


def assert_tensors_equal(actual, expected, *, tolerance: float = 1e-10) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            actual[name],
            tensor,
            rtol=tolerance,
            atol=tolerance,
            equal_nan=True,  # free places in the pool of a quantizer
            msg=lambda text, name=name: f"{name}: {text}",
        )


def flat(tensors) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def assert_logs_equal(folders, *, tolerance: float = 1e-10, groups=("train", "val", "val_raw")):
    one, two = (
        {key: value for key, value in logged(folder).items() if key[1].split("/")[0] in groups}
        for folder in folders
    )
    assert two == pytest.approx(one, rel=tolerance, abs=tolerance)
    return one


def compare(name: str, one: dict, processes: list[dict], folders: list[Path]) -> None:
    """Everything two processes hold and have logged equals what one holds and has logged."""
    steps = one["num_updates"]
    log = assert_logs_equal(folders, groups=("train", "val", "val_raw", "latent"))
    assert {step for step, metric in log if metric == "train/loss_total"} == {*range(1, steps + 1)}
    for two in processes:
        assert two["num_updates"] == steps
        assert_tensors_equal(two["gradients"], one["gradients"])
        assert_tensors_equal(two["state"], one["state"])
        assert two["scalars"] == pytest.approx(one["scalars"], rel=1e-10, abs=1e-10)
        for metric, channels in one["per_channel"].items():
            assert two["per_channel"][metric] == pytest.approx(channels, rel=1e-10, abs=1e-10)
        assert two["num_images"] == one["num_images"] == 13
        if "vqgan" in name:
            assert torch.equal(two["histogram"], one["histogram"])
    assert_tensors_equal(processes[0]["state"], processes[1]["state"], tolerance=0.0)


def compare_first_update(one: dict, processes: list[dict], folders: list[Path]) -> None:
    """float32: losses, gradient norms and weights logged, and the gradients as a whole."""
    assert_logs_equal(folders, tolerance=1e-5, groups=("train",))
    for two in processes:
        assert two["gradients"].keys() == one["gradients"].keys()
        expected = flat(one["gradients"])
        assert (flat(two["gradients"]) - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize(
    "experiment",
    ["kl_f8", "vqgan_f16", "vae_f8"],
)
@pytest.mark.slow
def test_two_processes_equal_one(tmp_path, experiment):
    names = [name for name in SCENARIOS if name.startswith(experiment)]
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    both = trained_by_two(names, folders[1])
    for name in names:
        one = train(name, folders[0], num_processes=1)
        here = [folder / name for folder in folders]
        if name.endswith("float32"):
            compare_first_update(one, both[name], here)
        else:
            compare(name, one, both[name], here)

    log = logged(folders[0] / experiment)
    weights = [v for (_, name), v in log.items() if name == "train/adversarial_weight"]
    names_logged = {name for _, name in log}
    if experiment == "vae_f8":
        assert not weights
        assert {"train/log_variance", "val/nll", "val/elbo"} <= names_logged
        return
    limit = 1e4 * ADVERSARIAL_WEIGHT[experiment]
    assert len(weights) == NUM_ADVERSARIAL_UPDATES[experiment]
    assert all(0 < weight < limit for weight in weights)  # the ratio itself, not its bound
    if experiment == "kl_f8":
        assert {"train/loss_r1", "train/loss_lecam", "val_raw/psnr"} <= names_logged
        learns = {step for step, name in log if name == "train/loss_discriminator"}
        assert learns == {*range(2, 11)}
    else:
        commitment = {s: v for (s, name), v in log.items() if name == "train/loss_commitment"}
        assert [commitment[step] for step in (1, 2, 3)] == [0, 0, 0]
        assert commitment[4] > 0


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_the_command_line_with_two_processes_equals_one_and_shares_one_run_folder(tmp_path):
    """The first process starts the second by running its own command again."""
    name, here = "command_line", tmp_path / "here"
    here.mkdir()
    words = overrides_of("kl_f8", *words_of(SCENARIOS[name], num_processes=2), "page=false")
    command = ["-m", "ldm_lightning.train", *words]
    log = tmp_path / "log.txt"
    process = start(command, log, cwd=here, XDG_CACHE_HOME=str(tmp_path / "cache"))
    one = train(name, tmp_path / "one", num_processes=1)
    finish([process], [log])
    said = log.read_text()
    assert "Device: 2 x " in said
    assert "Warning" not in said
    assert "GLOBAL_RANK" not in said

    assert [path.name for path in here.iterdir()] == ["outputs"]
    assert [path.name for path in (here / "outputs").iterdir()] == ["kl_f8"]
    (run,) = (here / "outputs" / "kl_f8").iterdir()
    alone = tmp_path / "one" / name
    written_besides = files_of(run) - files_of(alone)
    assert files_of(alone) <= files_of(run)
    kinds = {Path(path).suffix or Path(path).name for path in written_besides}
    assert kinds <= {".yaml", ".log", ".lock"}

    assert_logs_equal([alone, run], groups=("train", "val", "val_raw", "latent"))
    stored, expected = (
        load_checkpoint(folder / "checkpoints" / "last.ckpt") for folder in (run, alone)
    )
    assert stored["global_step"] == one["num_updates"] == 4
    for part in ("state_dict", "ema"):
        assert_tensors_equal(stored[part], expected[part])
    summary = RunFolder(run).read_summary()
    assert summary["state"] == "finished"
    assert summary["num_processes"] == 2


@pytest.mark.parametrize("words", [("trainer=ddp_cpu",), ("trainer=cpu", "trainer.devices=3")])
def test_batch_norm_over_processes_on_the_cpu_is_refused_before_anything_is_built(tmp_path, words):
    """torch gathers its statistics on GPUs alone; each process's own would differ."""
    with pytest.raises(ValueError, match=r"normalization=batch .*[23] processes .*=group"):
        compose_tiny(*BATCH_NORM, *words, folder=tmp_path)


def test_batch_norm_is_refused_too_where_the_device_is_found_out_later(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = compose_tiny(*BATCH_NORM, "trainer=auto", "trainer.devices=2", folder=tmp_path)
    with pytest.raises(ValueError, match="normalization=batch .*2 processes"):
        trainer_settings(cfg)
    cfg.trainer.devices = 1
    assert trainer_settings(cfg)["devices"] == 1

"""The package as others install it: a wheel, away from the checkout."""

import zipfile
from pathlib import Path

import pytest

from ldm_lightning.config import CONF_DIR
from tests.cli.run import EXPERIMENTS, ROOT, SECOND_STAGES, process, run_folder, summary_of


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    words = ["-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    ended = process(words, folder)
    assert ended.code == 0, ended.output
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    target = tmp_path_factory.mktemp("site")
    words = ["-m", "pip", "install", "--no-deps", "--no-index", "--no-compile", "--quiet"]
    ended = process([*words, "--target", target, wheel], target)
    assert ended.code == 0, ended.output
    return target


@pytest.mark.slow
def test_the_wheel_holds_what_runs_and_nothing_of_the_checkout(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    source = {
        path.relative_to(ROOT).as_posix()
        for folder in ("ldm_lightning", "hydra_plugins")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    conf = {f"ldm_lightning/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    held = {name for name in names if ".dist-info/" not in name}
    assert source <= held
    assert held - source == conf
    features = {name for name in held if "tiny_features" in name}
    assert {Path(name).suffix for name in features} == {".py", ".safetensors", ".json"}
    assert any(name.endswith("/LICENSE") for name in names)


@pytest.mark.slow
def test_the_wheel_declares_the_commands(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        text = archive.read(name).decode()
    for name in ("train", "evaluate", "encode", "sample", "plan", "report", "pipeline"):
        assert f"ldm-{name} = ldm_lightning.{name}:main" in text


@pytest.mark.slow
def test_an_installed_wheel_finds_its_own_configuration(installed, tmp_path):
    where = "import ldm_lightning.config as c; print(c.CONF_DIR)"
    env = {"PYTHONPATH": str(installed)}
    assert process(["-c", where], tmp_path, env=env).output.strip() == str(
        installed / "ldm_lightning" / "conf"
    )
    ended = process(["-m", "ldm_lightning.train", "--cfg", "job"], tmp_path, env=env)
    assert ended.code == 0, ended.output
    assert "name: kl_f8" in ended.output


@pytest.mark.slow
def test_an_installed_wheel_builds_a_model_and_loads_its_features(installed, tmp_path):
    env = {"PYTHONPATH": str(installed)}
    words = ["-m", "ldm_lightning.train", "experiment=vq_f4", "dry_run=true"]
    ended = process(words, tmp_path, env=env)
    assert ended.code == 0, ended.output
    summary = summary_of(run_folder(tmp_path, "vq_f4"))
    assert summary["state"] == "dry_run"
    load = "from ldm_lightning.nn import tiny_features as t; print(t.__file__); "
    load += "print(t.TinyFeatures.pretrained().weights_hash)"
    file, weights_hash = process(["-c", load], tmp_path, env=env).output.split()
    assert file.startswith(str(installed))
    assert len(weights_hash) == 64


@pytest.mark.slow
def test_an_installed_wheel_sweeps(installed, tmp_path):
    env = {"PYTHONPATH": str(installed)}
    words = ["-m", "ldm_lightning.train", "-m", "experiment=kl_f8,vq_f8", "dry_run=true"]
    ended = process([*words, "sweep_name=a", "hydra.launcher.n_jobs=2"], tmp_path, env=env)
    assert ended.code == 0, ended.output
    states = [summary_of(path)["state"] for path in (tmp_path / "outputs/sweeps/a").glob("*_*")]
    assert states == ["dry_run", "dry_run"]


def test_a_checkout_uses_the_configuration_beside_the_package():
    assert CONF_DIR == ROOT / "conf"
    assert {path.stem for path in (CONF_DIR / "experiment").iterdir()} == {
        *EXPERIMENTS,
        *SECOND_STAGES,
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ldm-train", "ldm-sample"])
def test_an_installed_command_prints_its_configuration(installed, tmp_path, name):
    env = {"PYTHONPATH": str(installed)}
    ended = process([installed / "bin" / name, "--cfg", "job"], tmp_path, env=env)
    assert ended.code == 0, ended.output
    assert "checkpoint:" in ended.output

"""The order of the files of a configuration, and what each adds."""

from pathlib import Path
from typing import Any

import pytest
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf

from ldm_lightning.checks.composition import Composer, leaves
from ldm_lightning.config import CONF_DIR, register_resolvers

SCALES = ("cpu", "gpu", "paper")
EXPERIMENTS = sorted(path.stem for path in (CONF_DIR / "experiment").glob("*.yaml"))
BOUNDS = CONF_DIR.parent / "experiments" / "first_stage_bounds_ldm" / "conf"


@pytest.fixture(autouse=True)
def _resolvers():
    register_resolvers()


def contexts() -> list[list[str]]:
    """Command lines that together read every file which inherits: experiments, scales, trainers."""
    at_gpu = [path.stem for path in (CONF_DIR / "recipe" / "gpu").glob("*.yaml")]
    names = {"cpu": EXPERIMENTS, "gpu": ["kl_f8", "ldm_kl_f8", *at_gpu], "paper": EXPERIMENTS}
    trainers = [path.stem for path in (CONF_DIR / "trainer").glob("*.yaml")]
    return [
        *([f"experiment={name}", f"scale={scale}"] for scale in SCALES for name in names[scale]),
        *([f"trainer={name}"] for name in trainers),
    ]


def repeated_keys(composer: Composer, command_lines: list[list[str]]) -> set[tuple[str, str]]:
    """Files and keys that have the value which they inherit, wherever the file is read."""
    repeats: set[tuple[str, str]] = set()
    adds: set[tuple[str, str]] = set()
    for words in command_lines:
        values: dict[str, Any] = {}
        for file in composer.files(words):
            for key, value in leaves(file.values):
                is_repeat = key in values and values[key] == value
                (repeats if is_repeat else adds).add((file.name, key))
                values[key] = value
    return repeats - adds


@pytest.mark.slow
def test_no_file_repeats_a_value_that_it_inherits():
    assert repeated_keys(Composer(), contexts()) == set()


def test_the_experiments_of_a_study_repeat_nothing():
    names = sorted(path.stem for path in (BOUNDS / "experiment").glob("*.yaml"))
    assert len(names) == 5
    words = [[f"experiment={name}", f"scale={scale}"] for name in names for scale in SCALES]
    assert repeated_keys(Composer(config_dir=BOUNDS), words) == set()


def test_a_repeated_value_is_found(tmp_path):
    write(tmp_path, "mine", "name: mine\nlog_every_steps: 10\nseed: 1")
    composer = Composer(config_dir=tmp_path)
    found = repeated_keys(composer, [["experiment=mine"]])
    assert found == {(str(tmp_path / "experiment" / "mine.yaml"), "log_every_steps")}


def test_every_recipe_is_of_an_experiment_or_shared_by_recipes():
    texts = [path.read_text() for path in (CONF_DIR / "recipe").rglob("*.yaml")]
    for path in (CONF_DIR / "recipe").glob("*/*.yaml"):
        name = f"/recipe/{path.parent.name}/{path.stem}\n"
        assert path.stem in EXPERIMENTS or any(name in text for text in texts), path


def write(folder: Path, name: str, text: str) -> None:
    """An experiment of a user in a folder for ``--config-dir``."""
    (folder / "experiment").mkdir(exist_ok=True)
    (folder / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n{text}\n")


def values_of(composer: Composer, *words: str) -> dict[str, Any]:
    # The folder of a run holds its name and the time.
    values = OmegaConf.to_container(composer.compose([*words, "output_dir=here"]).cfg, resolve=True)
    assert isinstance(values, dict)
    return values


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("experiment", ["kl_f8", "vq_f4", "ldm_shapes"])
def test_a_renamed_copy_has_the_same_values(tmp_path, experiment, scale):
    text = (CONF_DIR / "experiment" / f"{experiment}.yaml").read_text()
    write(tmp_path, "renamed", text.replace(f"\nname: {experiment}\n", "\nname: renamed\n"))
    composer = Composer(config_dir=tmp_path)
    copy = values_of(composer, "experiment=renamed", f"scale={scale}")
    assert copy.pop("name") == "renamed"
    original = values_of(composer, f"experiment={experiment}", f"scale={scale}")
    assert original.pop("name") == experiment
    assert copy == original


@pytest.mark.parametrize("scale", SCALES)
def test_a_value_of_an_experiment_wins_over_scale_and_recipe(tmp_path, scale):
    write(tmp_path, "mine", "defaults: [kl_f8, _self_]\nname: mine\nmax_steps: 7")
    composer = Composer(config_dir=tmp_path)
    words = ["experiment=mine", f"scale={scale}"]
    assert values_of(composer, *words)["max_steps"] == 7
    assert values_of(composer, *words, "max_steps=8")["max_steps"] == 8


def test_an_experiment_names_another_recipe_and_the_command_line_yet_another(tmp_path):
    text = "defaults:\n  - override /recipe: ${scale}/vq_f4\nname: mine"
    write(tmp_path, "mine", text)
    (tmp_path / "recipe" / "cpu").mkdir(parents=True)
    (tmp_path / "recipe" / "cpu" / "own.yaml").write_text("# @package _global_\nseed: 5\n")
    composer = Composer(config_dir=tmp_path)
    chosen = composer.compose(["experiment=mine"])
    assert (chosen.choices["recipe"], chosen.cfg.resolution, chosen.cfg.seed) == (
        "cpu/vq_f4",
        32,
        0,
    )
    own = composer.compose(["experiment=mine", "recipe=cpu/own"])
    assert (own.choices["recipe"], own.cfg.resolution, own.cfg.seed) == ("cpu/own", 64, 5)


def test_files_come_in_the_documented_order():
    names = [Path(file.name) for file in Composer().files(["experiment=ldm_shapes"])]
    order = [
        *("base.yaml", "stage/second.yaml", "features/stage/second_tiny.yaml", "scale/cpu.yaml"),
        *("scale/stage/second_cpu.yaml", "scale/denoiser/unet_cpu.yaml"),
        *("recipe/cpu/ldm_kl_f4.yaml", "recipe/cpu/ldm_shapes.yaml", "experiment/ldm_shapes.yaml"),
    ]
    places = [names.index(Path("conf") / name) for name in order]
    assert places == sorted(places)
    assert places[-1] == len(names) - 1


@pytest.mark.parametrize(
    ("scale", "features"), [("cpu", "tiny"), ("gpu", "standard"), ("paper", "standard")]
)
def test_a_scale_chooses_the_networks_of_the_metrics_and_a_word_others(scale, features):
    composer = Composer()
    for experiment, monitors in (("kl_f8", "val/rfid"), ("ldm_kl_f8", "gen/fid")):
        words = [f"experiment={experiment}", f"scale={scale}"]
        composed = composer.compose(words)
        assert composed.choices["features"] == features
        assert (composed.cfg.monitor == monitors) == (features == "standard")
        assert composer.compose([*words, "features=tiny"]).cfg.monitor != monitors


def test_betas_follow_from_stage_and_optimizer_and_not_from_the_scale():
    composer = Composer()
    chosen = [*(("adam", scale) for scale in SCALES), ("radam", "cpu"), ("muon", "cpu")]
    for optim, scale in chosen:
        for experiment, betas in (("kl_f8", [0.5, 0.9]), ("ldm_kl_f8", [0.9, 0.999])):
            words = [f"experiment={experiment}", f"optim={optim}", f"scale={scale}"]
            assert composer.compose(words).cfg.optim.betas == betas


def test_the_word_none_chooses_no_recipe():
    composed = Composer().compose(["experiment=kl_f8", "recipe=none"])
    assert composed.cfg.max_steps == 1600
    assert composed.choices["recipe"] == "none"


def test_a_missing_experiment_is_named():
    with pytest.raises(MissingConfigException, match="experiment/nothing"):
        Composer().compose(["experiment=nothing"])

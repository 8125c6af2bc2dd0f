"""Continuing a run: every key and group of both stages is applied, or refused by its name."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.conf import HydraConf
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from ldm_lightning.checks.keys import check_keys
from ldm_lightning.config import CONF_DIR, register_resolvers
from ldm_lightning.restore.stored_config import read_composition
from ldm_lightning.resume import changes
from ldm_lightning.resume.arguments import composition_of, continued_arguments
from ldm_lightning.resume.changes import FIXED_GROUPS, ONE_COMMAND, check_changes, rule_of
from ldm_lightning.resume.kept_values import is_tree
from ldm_lightning.runs.overrides import key_of, literal

STARTS = {
    "first": ["experiment=vqgan_f16", "max_steps=8", "resolution=48", "run_group='${name}'"],
    "second": [
        *("experiment=ldm_shapes", "scale=gpu", "sampler=ddpm", "first_stage.checkpoint=nowhere"),
        *("conditioner.num_classes=3", "conditioner.width=5"),
    ],
}
"""Command lines that begin a run of either stage; keys that follow from others are among them."""

OF_TEXTS = {
    "name": "other",
    "monitor": "val/psnr",
    "stall_monitors": ["val/psnr"],
    "callbacks.stall_stopping.monitors": {"val/psnr": "max"},
    "resolution": [64, 32],
    "output_dir": "elsewhere",
    "trainer.precision": "bf16",
    "data.crop_scale": [0.5, 0.9],
}
"""Other values for keys of which it matters what they are; else any will do."""


@dataclass(frozen=True)
class Composed:
    """What Hydra makes of a command line."""

    values: dict[str, Any]
    runtime: HydraConf

    @property
    def leaves(self) -> dict[str, Any]:
        """Values by key, mappings with names such as ``val/psnr`` whole."""
        return leaves_of(self.values)


def composed(words: list[str]) -> Composed:
    register_resolvers()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = compose("train", overrides=words, return_hydra_config=True)
    runtime = cfg.hydra
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    return Composed(OmegaConf.to_container(cfg, resolve=True), runtime)


def leaves_of(value: Any, key: str = "") -> dict[str, Any]:
    if not is_tree(value) or not value:
        return {key: value}
    found: dict[str, Any] = {}
    for name, item in value.items():
        found |= leaves_of(item, f"{key}.{name}".lstrip("."))
    return found


def begin(folder: Path, words: list[str]) -> Composed:
    """Leave in a folder what a run stores of its configuration."""
    run = composed([*words, f"output_dir={folder}"])
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(run.values)))
    composition_of(run.runtime, None).write(folder)
    return run


@dataclass(frozen=True)
class Run:
    """A run of one stage: its folder and what it was composed to."""

    folder: Path
    began: Composed

    def continued(self, *words: str, options: tuple[str, ...] = ()) -> Composed:
        """The configuration with which ``train resume=RUN WORDS`` goes on."""
        register_resolvers()
        arguments = continued_arguments([*options, f"resume={self.folder}", *words])
        return composed([word for word in arguments if word not in options])


@pytest.fixture(scope="module", params=list(STARTS))
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "run"
    return Run(folder, begin(folder, STARTS[request.param]))


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("of_the_first") / "run"
    return Run(folder, begin(folder, STARTS["first"]))


def other_value(key: str, value: Any) -> Any:
    """A value that a key does not have."""
    if key in OF_TEXTS:
        return OF_TEXTS[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, list):
        return [*value, value[0] if value else "a"]
    return "it's other"


# All keys


def test_what_a_command_is_silent_about_stays_as_it_was(run):
    assert changed_keys(run.began, run.continued()) == {"resume"}


def test_every_key_takes_the_value_that_the_command_gives(run):
    """Of all at once; whether a run may take it is the next test's."""
    wished = {
        key: other_value(key, value)
        for key, value in run.began.leaves.items()
        if not key.endswith("_target_") and key not in (*ONE_COMMAND, *FIXED_GROUPS)
    }
    assert len(wished) > 90
    now = run.continued(*(f"{key}={literal(value)}" for key, value in wished.items()))
    assert {key: OmegaConf.select(OmegaConf.create(now.values), key) for key in wished} == wished


def test_every_key_has_a_rule_and_what_is_not_applied_is_refused_by_name(run):
    applied, refused = set(), set()
    for key, value in run.began.leaves.items():
        if key in ONE_COMMAND:
            continue
        other = other_value(key, value)
        now = changed(run.began.values, key.split("."), other)
        if rule_of(key) == changes.APPLIED:
            check_changes(run.began.values, now, run.folder)
            applied.add(key)
        elif rule_of(key) != changes.SWITCH:
            with pytest.raises(ValueError, match=re.escape(key)) as told:
                check_changes(run.began.values, now, run.folder)
            assert str(other) in str(told.value)
            assert str(value) in str(told.value)
            refused.add(key)
    assert {"optim.learning_rate", "data.batch_size", "callbacks.ema.decay"} <= applied
    assert {"stage", "image_channels", "checkpoint"} <= refused


def changed(values: dict[str, Any], place: list[str], value: Any) -> dict[str, Any]:
    """A copy with another value at one place."""
    first, *rest = place
    return {**values, first: changed(values[first], rest, value) if rest else value}


def test_no_rule_is_left_over():
    keys = {key for words in STARTS.values() for key in composed(words).leaves}
    keys |= set(composed(["experiment=kl_f8"]).leaves)
    unused = [
        name for name in changes.RULES if not any(f"{k}.".startswith(f"{name}.") for k in keys)
    ]
    assert not unused


@pytest.mark.parametrize("key", ["loss.lecam_weight", "bottleneck.quantize_start_step"])
def test_a_part_may_be_weighted_otherwise_but_not_switched_on_or_off(first, key):
    values, place = first.began.values, key.split(".")
    for before, after, is_refused in ((1, 2, False), (0, 0, False), (0, 1, True), (2, 0, True)):
        two = (changed(values, place, before), changed(values, place, after))
        if is_refused:
            with pytest.raises(ValueError, match=re.escape(key)):
                check_changes(*two, first.folder)
        else:
            check_changes(*two, first.folder)


def changed_keys(one: Composed, other: Composed) -> set[str]:
    return {key for key, _, _ in changes.differences(one.values, other.values)}


# All groups

APPLIED_GROUPS = {
    "first": ["trainer=ddp_cpu", "logger=wandb", "features=standard", "data=image_folder"],
    "second": [
        *("trainer=fsdp", "logger=tensorboard", "features=standard", "data=latents"),
        "sampler=heun",
    ],
}
REFUSED_GROUPS = {
    "first": {
        "discriminator=none": "discriminator",
        "bottleneck=gaussian": "bottleneck",
        "optim=sgd": "optim._target_",
    },
    "second": {
        "optim=radam": "optim._target_",
        "denoiser=dit": "denoiser",
        "conditioner=none": "conditioner",
        "diffusion=eps": "diffusion",
        "diffusion/schedule=cosine": "diffusion.schedule",
    },
}
OTHER_GROUPS = ("diffusion/training_times=uniform", "diffusion/weighting=min_snr")


def test_every_group_is_tried_or_has_one_file_or_is_fixed(run):
    stage = run.began.values["stage"]
    words = [*APPLIED_GROUPS[stage], *REFUSED_GROUPS[stage], *OTHER_GROUPS]
    tried = {key_of(word) for word in words}
    for group, choice in run.began.runtime.runtime.choices.items():
        of_this_stage = [path for path in (CONF_DIR / group).glob("*.yaml")]
        is_one = len(of_this_stage) == 1 or group == "callbacks"  # one file a stage
        assert (
            group in (*tried, *FIXED_GROUPS) or is_one or group.startswith("hydra/") or not choice
        )


def test_groups_are_applied_with_the_values_that_were_given_at_the_start(run):
    stage = run.began.values["stage"]
    words = APPLIED_GROUPS[stage]
    now = run.continued(*words, "data.root=there")
    choices = now.runtime.runtime.choices
    assert [f"{key_of(word)}={choices[key_of(word)]}" for word in words] == words
    fresh = composed([*STARTS[stage], *words, "data.root=there"])
    follows = {"resume", "output_dir", "cache_dir", "data.cache_dir"}  # of the test alone
    assert changed_keys(fresh, now) - follows == set()
    check_changes(run.began.values, now.values, run.folder)


@pytest.mark.parametrize("group", FIXED_GROUPS)
def test_groups_that_set_values_everywhere_are_refused_by_name(run, group):
    with pytest.raises(ValueError, match=f"{group}=other"):
        continued_arguments([f"resume={run.folder}", f"{group}=other"])


def test_groups_that_the_checkpoint_holds_are_refused_by_name(run):
    for word, name in REFUSED_GROUPS[run.began.values["stage"]].items():
        now = run.continued(word)
        with pytest.raises(ValueError, match=re.escape(name)):
            check_changes(run.began.values, now.values, run.folder)


# How words are read


READ = {
    "++max_steps=3": ("max_steps", 3),
    "seed=3": ("seed", 4),
    "seed=4": ("seed", 4),
    r"cache_dir=a\ b\=c": ("cache_dir", "a b=c"),
    "run_group='it\\'s, [a]'": ("run_group", "it's, [a]"),
    "callbacks.progress=null": ("callbacks.progress", None),
    "~callbacks.ema": ("callbacks.ema", None),
    "optim={betas:[0,0.5]}": ("optim.betas", [0, 0.5]),
    "resolution=64": ("data.resolution", 64),
    "monitor=val/psnr": ("callbacks.checkpointing.higher_is_better", True),
}


def test_words_are_read_as_at_the_start(first):
    now = OmegaConf.create(first.continued(*READ).values)
    assert {key: OmegaConf.select(now, key) for key, _ in READ.values()} == dict(READ.values())


def test_a_misspelt_key_is_refused(first):
    with pytest.raises(ConfigCompositionException, match="max_step"):
        first.continued("max_step=3")


def test_a_run_is_continued_again_with_what_it_was_given_before(tmp_path, first):
    """Keys given once win over what a file says that is chosen later."""
    shutil.copytree(first.folder, tmp_path / "run")
    again = Run(tmp_path / "run", first.began)
    words = ["data=image_folder", "data.root=there", "trainer.devices=3"]
    second = again.continued(*words)
    (again.folder / "config.yaml").write_text(
        OmegaConf.to_yaml(OmegaConf.create({**second.values, "resume": None}))
    )
    composition_of(second.runtime, read_composition(again.folder)).write(again.folder)
    third = again.continued("data.root=elsewhere", "trainer=ddp_cpu")
    assert third.values["data"] == {**second.values["data"], "root": "elsewhere"}
    assert third.values["trainer"]["devices"] == 3
    assert third.values["trainer"]["accelerator"] == "cpu"


def test_the_latest_unfinished_run_is_found_with_any_word(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "outputs" / "kl_f4" / "2030"
    folder.parent.mkdir(parents=True)
    begin(folder, ["experiment=kl_f4", "data=image_folder", "data.root=here", "seed=7"])
    (folder / "summary.json").write_text('{"state": "failed"}')
    arguments = continued_arguments(["experiment=kl_f4", "resume=auto", "data.root=there"])
    now = composed(arguments).values
    assert (now["data"]["root"], now["seed"]) == ("there", 7)
    assert Path(now["output_dir"]).absolute() == folder
    new = ["experiment=kl_f8", "resume=auto"]
    assert continued_arguments(new) == new


@pytest.mark.parametrize("words", [[], ["resume=null"], ["-m", "resume=auto", "seed=1,2"]])
def test_other_commands_are_left_as_they_are(words):
    assert continued_arguments(words) == words


def test_the_folder_is_that_of_the_run(run, tmp_path):
    with pytest.raises(ValueError, match="output_dir=elsewhere"):
        run.continued("output_dir=elsewhere")
    with pytest.raises(ValueError, match=r"nowhere/config\.yaml"):
        continued_arguments(["resume=nowhere"])


# Files that have changed since


def test_an_experiment_of_ones_own_may_change_or_vanish_and_the_run_keeps_its_values(
    tmp_path, caplog
):
    conf = tmp_path / "conf" / "experiment"
    conf.mkdir(parents=True)
    text = "# @package _global_\ndefaults: [kl_f4, _self_]\nname: mine\nloss: {kl_weight: 0.5}\n"
    (conf / "mine.yaml").write_text(text)
    options = ("--config-dir", str(conf.parent))
    search = f"hydra.searchpath=[file://{conf.parent}]"
    folder = tmp_path / "run"
    own = Run(folder, begin(folder, ["experiment=mine", "seed=7", search]))
    (conf / "mine.yaml").write_text(text.replace("0.5", "0.25"))

    arguments = continued_arguments([*options, f"resume={folder}"])
    assert arguments[:2] == list(options)
    assert composed([*arguments[2:], search]).values["loss"]["kl_weight"] == 0.5
    assert "loss.kl_weight" in caplog.text
    given = continued_arguments([*options, f"resume={folder}", "loss.kl_weight=0.25"])
    assert composed([*given[2:], search]).values["loss"]["kl_weight"] == 0.25

    shutil.rmtree(conf)
    caplog.clear()
    now = own.continued("optim.learning_rate=0.25")
    assert changed_keys(own.began, now) == {"resume", "optim.learning_rate"}
    assert "experiment" in caplog.text
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        check_keys(OmegaConf.create(now.values), now.runtime.runtime.choices)


def test_another_file_of_ones_own_that_is_gone_is_named(tmp_path, first):
    folder = tmp_path / "run"
    shutil.copytree(first.folder, folder)
    text = (folder / "overrides.yaml").read_text()
    (folder / "overrides.yaml").write_text(text.replace("data: shapes", "data: mine"))
    with pytest.raises(ValueError, match="data/mine.*--config-dir"):
        continued_arguments([f"resume={folder}"])

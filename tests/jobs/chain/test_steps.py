"""Which words go to which step of a chain."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from ldm_lightning.jobs.chain.steps import (
    ImageFacts,
    Request,
    Step,
    all_steps,
    continued,
    first_stage_overrides,
    held_out_overrides,
    overridden,
    second_stage_overrides,
    trainings,
)
from ldm_lightning.runs.overrides import key_of, path_override

FOLDER = Path("/runs/chain")
FACTS = ImageFacts(data="image_folder", features="tiny", eval_crop="crops", image_channels=3)
WORDS = (
    "experiment=ldm_kl_f4",
    "name=faces",
    "scale=gpu",
    "data=image_folder",
    "data.root=photos",
    "data.batch_size=32",
    "data.num_workers=4",
    "trainer.devices=2",
    "logger=wandb",
    "features=standard",
    "features.weights_dir=weights",
    "resolution=64",
    "eval_crop=center",
    "seed=3",
    "max_steps=500",
    "denoiser.base_width=64",
    "first_stage.normalizer=scalar",
    "first_stage.overrides=['max_steps=9']",
    "encode.overrides=[]",
    "samples.num_samples=10",
    "output_dir=/runs/chain",
    "dry_run=false",
)


def steps_of(*words, **changes):
    request = Request("ldm_kl_f4", "kl_f4", tuple(words), **changes)
    first, second = trainings(request, FOLDER)
    return {step.name: step for step in all_steps(request, first, second, FACTS, FOLDER)}


def test_the_first_stage_gets_the_words_about_images_and_the_machine():
    assert first_stage_overrides(WORDS) == [
        "scale=gpu",
        "data=image_folder",
        "data.root=photos",
        "data.num_workers=4",
        "trainer.devices=2",
        "logger=wandb",
        "features=standard",
        "features.weights_dir=weights",
        "resolution=64",
        "eval_crop=center",
        "seed=3",
    ]


def test_the_second_stage_gets_all_but_the_images_and_what_is_the_chains_own():
    assert second_stage_overrides(WORDS) == [
        "name=faces",
        "scale=gpu",
        "data.batch_size=32",
        "data.num_workers=4",
        "trainer.devices=2",
        "logger=wandb",
        "features=standard",
        "features.weights_dir=weights",
        "resolution=64",
        "eval_crop=center",
        "seed=3",
        "max_steps=500",
        "denoiser.base_width=64",
        "first_stage.normalizer=scalar",
    ]


def test_every_word_goes_somewhere():
    own = {"experiment", "first_stage.overrides", "encode.overrides", "samples.num_samples"}
    routed = {*first_stage_overrides(WORDS), *second_stage_overrides(WORDS)}
    lost = {key_of(word) for word in WORDS if word not in routed}
    assert lost == own | {"output_dir", "dry_run"}


@pytest.mark.parametrize("word", ["trainer.x=1", "+trainer.x=1", "++trainer.x=1", "~trainer.x"])
def test_a_key_is_found_however_it_is_set(word):
    assert key_of(word) == "trainer.x"
    assert first_stage_overrides([word]) == second_stage_overrides([word]) == [word]


def test_overrides_replace_words_with_the_same_key():
    assert overridden(["scale=cpu", "seed=1", "data=shapes"], ["scale=gpu", "max_steps=3"]) == [
        "seed=1",
        "data=shapes",
        "scale=gpu",
        "max_steps=3",
    ]


def test_the_steps_follow_each_other_through_their_folders():
    steps = steps_of("scale=gpu")
    assert [(step.name, step.command) for step in steps.values()] == [
        ("first_stage", "train"),
        ("first_stage_evaluation", "evaluate"),
        ("latents", "encode"),
        ("second_stage", "train"),
        ("samples", "sample"),
        ("prior", "sample"),
        ("evaluation", "evaluate"),
        ("prior_evaluation", "evaluate"),
    ]
    for step in steps.values():
        written = [word for word in step.overrides if key_of(word) in ("output", "output_dir")]
        assert [word.partition("=")[2] for word in written] == [f"/runs/chain/{step.name}"]
    assert steps["first_stage"].overrides == (
        "experiment=kl_f4",
        "scale=gpu",
        "run_group=runs_chain",
        "output_dir=/runs/chain/first_stage",
    )
    assert steps["second_stage"].overrides[:4] == (
        "experiment=ldm_kl_f4",
        "first_stage.checkpoint=/runs/chain/first_stage",
        "data=latents",
        "data.root=/runs/chain/latents",
    )
    assert "images=/runs/chain/prior/images" in steps["prior_evaluation"].overrides


@pytest.mark.parametrize(
    ("folder", "group"),
    [
        (
            "outputs/ldm_kl_f4_chain/2026-01-02_03-04-05-678",
            "ldm_kl_f4_chain_2026-01-02_03-04-05-678",
        ),
        ("outputs/sweeps/widths/3_ab12cd34", "widths_3_ab12cd34"),
        ("my runs/a=b", "my_runs_a_b"),
    ],
)
def test_both_trainings_are_of_one_group_named_by_the_chains_folder(folder, group):
    first, second = trainings(Request("ldm_kl_f4", "kl_f4", ()), Path(folder))
    assert f"run_group={group}" in first.overrides
    assert f"run_group={group}" in second.overrides


def test_a_group_of_ones_own_is_kept():
    steps = steps_of("run_group=mine", first_stage_overrides=("run_group=firsts",))
    groups = {
        name: [word for word in steps[name].overrides if key_of(word) == "run_group"]
        for name in ("first_stage", "second_stage")
    }
    assert groups == {"first_stage": ["run_group=firsts"], "second_stage": ["run_group=mine"]}


def test_overrides_reach_their_step_alone():
    steps = steps_of(
        "seed=1",
        first_stage_overrides=("max_steps=9", "seed=2"),
        encode_overrides=("flip=true",),
        num_samples=7,
        sample_overrides=("labels=3", "batch_size=5", "sampler=heun", "sampler.num_steps=2"),
    )
    holders = {
        word: [name for name, step in steps.items() if word in step.overrides]
        for word in ("max_steps=9", "flip=true", "labels=3", "batch_size=5", "sampler=heun")
    }
    assert holders == {
        "max_steps=9": ["first_stage"],
        "flip=true": ["latents"],
        "labels=3": ["samples"],
        "batch_size=5": ["samples", "prior"],  # decoded noise has no labels and no sampler
        "sampler=heun": ["samples"],
    }
    assert "seed=2" in steps["first_stage"].overrides
    assert "seed=1" not in steps["first_stage"].overrides
    assert "seed=1" in steps["second_stage"].overrides
    assert all("num_samples=7" in steps[name].overrides for name in ("samples", "prior"))


def test_samples_are_compared_with_the_held_out_images_of_the_first_stage():
    words = [
        "scale=gpu",
        "data.root=photos",
        "data.batch_size=9",
        "data.val_fraction=0.2",
        "seed=3",
    ]
    assert held_out_overrides(words, FACTS, num_samples=50) == [
        "data=image_folder",
        "features=tiny",
        "eval_crop=crops",
        "image_channels=3",
        "data.max_val_images=50",
        "data.root=photos",
        "data.val_fraction=0.2",
        "seed=3",
    ]
    given = held_out_overrides(["data.max_val_images=null"], FACTS, num_samples=50)
    assert [word for word in given if "max_val" in word] == ["data.max_val_images=null"]


def test_a_dry_run_leaves_no_beginning_of_a_training():
    first, second = trainings(Request("ldm_kl_f4", "kl_f4", ()), FOLDER, dry_run=True)
    for step in (first, second):
        assert step.overrides[-2:] == (
            f"output_dir=/runs/chain/dry_run/{step.name}",
            "dry_run=true",
        )


@pytest.mark.parametrize("path", ["a/b-1.5", "with space", "a=b,c", "it's", "[x]{y}", "ä"])
def test_any_path_is_one_word_of_hydra(path):
    (override,) = OverridesParser.create().parse_overrides([path_override("output", Path(path))])
    assert str(override.value()) == path


def test_a_command_can_be_copied_into_a_shell():
    step = Step("latents", "encode", ("output='a b'", "splits=[train]"))
    assert shlex.split(step.line) == ["python", "-m", "ldm_lightning.encode", *step.overrides]
    mine = replace(step, options=("--config-dir", "a b"))
    assert shlex.split(mine.line)[3:] == ["--config-dir", "a b", *step.overrides]


def test_only_a_training_that_has_begun_is_continued(tmp_path):
    training = Step("first_stage", "train", ("experiment=kl_f4",))
    encoding = Step("latents", "encode", ("output=x",))
    for step in (training, encoding):
        assert continued(step, tmp_path) == step
        (tmp_path / step.name).mkdir()
        (tmp_path / step.name / "config.yaml").touch()
    assert continued(training, tmp_path).overrides == (f"resume={tmp_path / 'first_stage'}",)
    assert continued(encoding, tmp_path) == encoding


def test_every_step_that_reads_images_remembers_them_in_one_place():
    steps = steps_of(*WORDS, "cache_dir=/cache")
    without = {name for name, step in steps.items() if "cache_dir=/cache" not in step.overrides}
    assert without == {"samples", "prior"}

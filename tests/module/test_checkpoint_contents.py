"""Whatever is wrong in a checkpoint is refused before training, with the file's name and the key.

Every place of a real checkpoint of both stages is damaged in turn, in every way.
"""

import copy
import shutil

import pytest
import torch
from omegaconf import OmegaConf

from ldm_lightning.builders.data import build_data
from ldm_lightning.builders.first_stage import build_first_stage_module
from ldm_lightning.builders.second_stage import build_frozen_first_stage, build_second_stage_module
from ldm_lightning.builders.training import build_features, build_trainer
from ldm_lightning.checkpoints.checkpoint import load_checkpoint
from ldm_lightning.module.checkpoint_contents import check_content, check_continues
from ldm_lightning.restore.first_stage import open_first_stage
from ldm_lightning.restore.second_stage import open_second_stage
from ldm_lightning.runs.run_folder import RunFolder
from ldm_lightning.utils.errors import CheckpointError
from tests.cli.run import command, run_folder, tensors_of, tiny
from tests.cli.second_stage import tiny_second

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

MANY = ("state_dict", "ema", "state")
"""Long mappings, of which the first and the last entry stand for all."""

NOT_READ = (
    ("loops", "validate_loop"),
    ("loops", "test_loop"),
    ("loops", "predict_loop"),
    ("first_stage", "*"),
    *(
        ("second_stage", key)
        for key in (
            *("denoiser", "conditioner", "diffusion"),
            *("sampler", "resolution", "image_channels"),
        )
    ),
    ("second_stage", "first_stage", "path"),
    ("second_stage", "first_stage", "weights"),
    ("second_stage", "normalizer", "origin", "mode"),
    ("second_stage", "normalizer", "origin", "first_stage_hash"),
    ("second_stage", "normalizer", "origin", "num_images"),
    ("second_stage", "normalizer", "origin", "protocol"),
)
"""Places below which a continued run reads nothing; a test proves it for the first stage."""

COMPARED = (
    ("callbacks", "StallStopping", "measured_as", "*", "*"),
    ("callbacks", "Checkpointing", "measured_as", "*"),
    ("linear_floor", "protocol", "*"),
)
"""Places that are compared with the run's own; where they differ, it searches or measures anew."""

STALLED = ("callbacks", "StallStopping")
BEST = ("callbacks", "Checkpointing")
LOADER = ("loops", "fit_loop", "state_dict", "combined_loader", 0)
HARMLESS = {
    # switched on when the run is continued: it begins to count then
    (("callbacks", "CodebookAlarm"), "removed"),
    (STALLED, "removed"),
    # a metric that was not monitored before
    *(((*STALLED, part), "empty") for part in ("best", "stalled")),
    *(
        ((*STALLED, part, f"val/{name}"), "removed")
        for part in ("best", "stalled")
        for name in ("perceptual_tiny", "rfd_tiny")
    ),
    # the best of a metric that was measured otherwise, or of another metric
    ((*STALLED, "measured_as"), "empty"),
    *(
        ((*STALLED, "measured_as", f"val/{name}"), way)
        for name in ("perceptual_tiny", "rfd_tiny")
        for way in ("removed", "empty")
    ),
    *(((*BEST, "monitor"), way) for way in ("none", "text")),
    *(((*BEST, "measured_as"), way) for way in ("none", "empty")),
    # the linear floor is measured again
    *((("linear_floor",), way) for way in ("removed", "none", "empty")),
    (("linear_floor", "scalars"), "empty"),
    (("linear_floor", "protocol"), "empty"),
    *(
        (("linear_floor", "scalars", name), "removed")
        for name in ("psnr", "ssim", "perceptual_tiny", "rfd_tiny")
    ),
    # no validation yet: the one after this update is made up
    *(
        (("loops", "fit_loop", f"{loop}.state_dict", "validated_step"), "none")
        for loop in ("epoch_loop.val_loop", "validation_loop")
    ),
    # classes without names; names are compared with the data's
    *((("second_stage", "classes", "names"), way) for way in ("none", "empty")),
    *((("second_stage", "classes", "names", 0), way) for way in ("removed", "text")),
    # the latents are not normalized
    (("second_stage", "normalizer", "origin"), "none"),
    # other images than before, which is said
    ((*LOADER, "order", "images"), "text"),
}
"""Damages that look like what a sound file may hold."""


def places(value, here=()):
    """Every place of nested content; of long mappings the first and the last."""
    if isinstance(value, dict):
        keys = list(value)
        if here and here[-1] in MANY and len(keys) > 2:
            keys = [keys[0], keys[-1]]
    elif isinstance(value, (list, tuple)):
        keys = list(range(min(1, len(value))))
    else:
        return
    for key in keys:
        yield (*here, key)
        yield from places(value[key], (*here, key))


REMOVED = object()


def damages(value):
    """Ways to damage a value, by name."""
    yield "removed", REMOVED
    if value is not None:
        yield "none", None
    yield "text", "damaged"
    if isinstance(value, torch.Tensor):
        yield "another shape", torch.zeros(*value.shape, 2)
        yield "another kind", torch.zeros_like(value, dtype=torch.complex64)
        yield "a number", 1.0
    elif isinstance(value, (dict, list)):
        yield "a number", 7
        if value:
            yield "empty", type(value)()
    elif isinstance(value, int):
        yield "negative", -3
    if not isinstance(value, dict):
        yield "a dictionary", {"a": 1}


def damaged(content, place, damage):
    """A copy that is shared but for what leads to the place."""
    if not place:
        return damage
    key, *rest = place
    changed = copy.copy(content) if isinstance(content, dict) else list(content)
    if damage is REMOVED and not rest:
        del changed[key]
    else:
        changed[key] = damaged(content[key], rest, damage)
    return changed


def is_below(place, parents):
    return any(
        len(place) >= len(parent)
        and all(wanted in ("*", found) for wanted, found in zip(parent, place, strict=False))
        for parent in parents
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    words = tiny(
        "vq_f8",
        max_steps=2,
        bottleneck__restart_every_steps=2,
        validation__linear_floor="true",
    )
    ended = command("train", words, folder)
    assert ended.code == 0, ended.output
    first = run_folder(folder, "vq_f8")
    words = tiny_second(
        first, max_steps=2, trainer__precision=32, downsampling_factor=8, validation__num_samples=0,
        monitor="val/loss", conditioner="class_label",
    )  # fmt: skip
    ended = command("train", words, folder)
    assert ended.code == 0, ended.output
    return {"first": first, "second": run_folder(folder, "ldm_kl_f4")}


@pytest.fixture(scope="module")
def checkable(runs):
    """Of both stages: the checkpoint's content, and what would receive it."""
    found = {}
    for stage, run in runs.items():
        cfg = OmegaConf.load(run / "config.yaml")
        data, features = build_data(cfg), build_features(cfg)
        if stage == "first":
            module = build_first_stage_module(
                cfg, protocol=data.protocol("val"), num_devices=1, features=features
            )
        else:
            module = build_second_stage_module(
                cfg,
                data=data,
                first_stage=build_frozen_first_stage(cfg, data),
                features=features,
                num_devices=1,
            )
        trainer = build_trainer(cfg, RunFolder.create(run))
        found[stage] = (load_checkpoint(run / "checkpoints" / "last.ckpt"), trainer, module)
    return found


@pytest.mark.parametrize("stage", ["first", "second"])
def test_every_damage_to_a_continued_run_is_refused_with_file_and_key(checkable, stage, tmp_path):
    content, trainer, module = checkable[stage]
    path = tmp_path / "damaged.ckpt"
    torch.save(content, path)
    check_continues(path, trainer=trainer, module=module)
    accepted, tried = [], 0
    for place in places(content):
        value = content
        for key in place:
            value = value[key]
        for name, damage in damages(value):
            if is_below(place, (*NOT_READ, *COMPARED)) or (place, name) in HARMLESS:
                continue
            tried += 1
            changed = damaged(content, place, damage)
            try:
                check_content(changed, path, trainer=trainer, module=module)
            except CheckpointError as error:
                told = str(error)
            else:
                told = ""
            if str(path) not in told:
                accepted.append((place, name, told))
    assert tried > 250
    assert not accepted, "\n".join(map(str, accepted))


@pytest.mark.parametrize("depth", [1, pytest.param(9, marks=pytest.mark.slow)])
@pytest.mark.parametrize("stage", ["first", "second"])
def test_every_damage_to_what_is_opened_is_refused_with_the_file_or_changes_nothing(
    runs, checkable, stage, depth, tmp_path
):
    content, _, _ = checkable[stage]
    path = tmp_path / "damaged.ckpt"

    def opened():
        if stage == "first":
            found = open_first_stage(path, weights="ema")
        else:
            found = open_second_stage(path, weights="ema", first_stage_checkpoint=runs["first"])
        return found.weights_hash

    torch.save(content, path)
    expected, accepted, tried = opened(), [], 0
    keys = ("ema", "global_step", f"{stage}_stage")
    for place in places(content):
        if place[0] not in keys or len(place) > depth:
            continue
        value = content
        for key in place:
            value = value[key]
        for name, damage in damages(value):
            if place[0] == "ema" and name == "removed" and len(place) == 1:
                continue  # the raw weights are taken then, and said to be
            wanted = "removed" if len(place) == 2 else "text"
            if len(place) > 1 and place[0] != "ema" and name != wanted:
                continue
            tried += 1
            torch.save(damaged(content, place, damage), path)
            try:
                if opened() != expected:
                    accepted.append((place, name))
            except ValueError as error:
                if "damaged.ckpt" not in str(error):
                    accepted.append((place, name, str(error)))
    assert tried > 10
    assert not accepted, "\n".join(map(str, accepted))


def test_what_is_not_read_changes_nothing(runs, checkable, tmp_path):
    content = checkable["first"][0]
    content = {
        **content,
        "loops": {"fit_loop": content["loops"]["fit_loop"]},
        "first_stage": dict.fromkeys(content["first_stage"], "damaged"),
    }
    ends = []
    for name, changed in (("whole", None), ("damaged", content)):
        run = shutil.copytree(runs["first"], tmp_path / "outputs" / "vq_f8" / name)
        last = run / "checkpoints" / "last.ckpt"
        if changed is not None:
            torch.save(changed, last)
        ended = command("train", [f"resume={run}", "max_steps=3"], tmp_path)
        assert ended.code == 0, ended.output
        ends.append(tensors_of(load_checkpoint(last)))
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_an_optimizer_state_of_another_shape_ends_the_command_not_the_process(runs, tmp_path):
    last = runs["first"] / "checkpoints" / "last.ckpt"
    content, before = load_checkpoint(last), (runs["first"] / "config.yaml").read_bytes()
    whole = last.read_bytes()
    content["optimizer_states"][0]["state"][3]["exp_avg"] = torch.zeros(1)
    torch.save(content, last)
    ended = command("train", [f"resume={runs['first']}", "max_steps=3"], tmp_path)
    last.write_bytes(whole)
    assert ended.code == 1
    for part in (str(last), "optimizer_states[0].state.3.exp_avg"):
        assert part in ended.said
    assert (runs["first"] / "config.yaml").read_bytes() == before

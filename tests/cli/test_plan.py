"""A plan: what train would cost, counted without memory and measured on a few updates."""

import copy
import io
import json
import re

import pytest
from rich.console import Console

from ldm_lightning import plan
from ldm_lightning.planning import facts as planning_facts
from ldm_lightning.planning import trial
from ldm_lightning.planning.table import print_plan
from tests.autoencoder.test_published_sizes import PUBLISHED
from tests.cli.run import command, run_folder, summary_of, tiny
from tests.cli.second_stage import tiny_second

GIB = 2**30


def plan_of(folder, words):
    ended = command("plan", [*words, "output=plan.json"], folder)
    assert ended.code == 0, ended.output
    assert [path.name for path in folder.iterdir()] == ["plan.json"]  # and no run folder, no log
    return json.loads((folder / "plan.json").read_text()), ended


@pytest.fixture
def free_memory(monkeypatch):
    def give(num_bytes):
        monkeypatch.setattr(planning_facts, "available_memory", lambda device: num_bytes)

    give(8 * GIB)
    return give


@pytest.fixture
def short_trial(monkeypatch):
    monkeypatch.setattr(trial, "MAX_UPDATES", 3)
    monkeypatch.setattr(trial, "PROBE_SECONDS", 0.05)


@pytest.fixture(scope="module")
def planned_512(tmp_path_factory):
    """The plan of a second stage at 512 px, and what was said."""
    words = ["experiment=ldm_kl_f8", "resolution=512", "plan.num_images=1000", "measure=false"]
    return plan_of(tmp_path_factory.mktemp("plan"), words)


def vgg_flops(side):
    """Convolutions of VGG-16 (Simonyan & Zisserman 2015, Table 1, D) on one image."""
    total, channels = 0, 3
    for width, number in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(number):
            total += 2 * side**2 * channels * width * 9
            channels = width
        side //= 2
    return total


def test_the_published_kl_f8_at_1024_px_is_counted_and_does_not_fit(tmp_path, free_memory):
    words = ["experiment=kl_f8", "scale=paper", "resolution=1024", "measure=false"]
    facts, ended = plan_of(tmp_path, words)
    parameters, flops = facts["parameters"], facts["flops"]
    *_, encoder, decoder, total = PUBLISHED["kl_f8"]
    sizes = [parameters[name] for name in ("encoder", "decoder", "autoencoder")]
    assert sizes == [encoder, decoder, total]
    assert facts["latents"]["shape"] == [4, 128, 128]
    assert facts["latents"]["compression"] == 48
    forward = flops["forward"]
    assert forward["perceptual"] == pytest.approx(vgg_flops(1024), rel=1e-3)
    autoencoder = forward["encoder"] + forward["decoder"]
    formula = 3 * autoencoder + 3 * forward["perceptual"] + 8 * forward["discriminator"]
    assert flops["update_by_formula"] == formula
    # Attention's backward pass makes its table again.
    assert formula <= flops["update"] <= 1.02 * formula
    memory = facts["memory"]
    trained = 4 * (total + parameters["discriminator"])
    assert memory["optimizer"] == 2 * trained
    assert memory["average"] == 4 * total
    assert memory["sum"] > 8 * GIB
    assert memory["gradient_checkpointing"]["sum"] < 0.5 * memory["sum"]
    assert "autoencoder.gradient_checkpointing=true" in ended.said
    assert facts["time"]["not_measured"] == "measure=false"


def test_512_px_are_48_times_fewer_numbers_in_latent_space(planned_512):
    facts, ended = planned_512
    pixels, latents = facts["denoiser_in"]["pixels"], facts["denoiser_in"]["latents"]
    assert (pixels["shape"], latents["shape"]) == ([3, 512, 512], [4, 64, 64])
    assert pixels["numbers"] / latents["numbers"] == facts["latents"]["compression"] == 48
    # positions are 64 times fewer; attention costs their square, and keeps no table
    kept = pixels["kept_bytes_float32"] / latents["kept_bytes_float32"]
    assert kept == pytest.approx(64, rel=0.01)
    assert 64 < pixels["forward_flops"] / latents["forward_flops"] < 64**2
    cache = facts["latent_cache"]
    assert cache["bytes"]["float32"] == 2 * cache["bytes"]["float16"]
    assert cache["bytes"]["float32"] == 1000 * (4 * 64 * 64) * 2 * 4  # mean and variance
    assert "786,432 -> 16,384" in ended.said


@pytest.mark.slow
def test_a_batch_that_fits_is_named_where_the_given_one_does_not(tmp_path, free_memory):
    words = [*tiny("kl_f4", data__batch_size=64, trainer__precision="bf16"), "measure=false"]
    memory = plan_of(tmp_path, words)[0]["memory"]
    assert memory["warning"] is None
    fixed = memory["gradients"] + memory["weights"] // 2
    free_memory(memory["sum"] - memory["peak_of_update"] // 2 + fixed)
    (tmp_path / "plan.json").unlink()
    _, ended = plan_of(tmp_path, words)
    assert "data.batch_size=32 accumulate_batches=2" in ended.said
    (tmp_path / "plan.json").unlink()
    smaller = [*words, "data.batch_size=32", "accumulate_batches=2"]
    facts, ended = plan_of(tmp_path, smaller)
    assert facts["memory"]["warning"] is None
    assert "autoencoder.gradient_checkpointing=true" not in ended.said


@pytest.mark.slow
def test_updates_are_timed_and_a_checkpoint_is_as_large_as_planned(tmp_path, short_trial):
    words = tiny("kl_f4", autoencoder__base_width=16, callbacks__ema__decay=0.9)
    (tmp_path / "plan").mkdir()
    facts, ended = plan_of(tmp_path / "plan", words)
    time = facts["time"]
    assert time["measured_updates"] >= 2
    images = time["measured_images_per_s"] * time["measured_seconds_per_update"]
    assert images == pytest.approx(facts["images_per_update"]) == pytest.approx(4)
    assert time["num_validations"] == 2
    assert time["estimated_seconds"] > time["estimated_seconds_of_updates"] > 0
    assert f"median of {time['measured_updates']}" in ended.said
    trained = command("train", words, tmp_path)
    assert trained.code == 0, trained.output
    folder = run_folder(tmp_path, "kl_f4")
    size = (folder / "checkpoints" / "last.ckpt").stat().st_size
    assert facts["disk"]["checkpoint"] == pytest.approx(size, rel=0.1)  # names take their place
    planned = {name: facts["parameters"][name] for name in ("autoencoder", "discriminator")}
    assert summary_of(folder)["parameters"] == planned


@pytest.mark.parametrize("data", ["shapes", pytest.param("latents", marks=pytest.mark.slow)])
def test_a_second_stage_is_timed_without_a_first_one(tmp_path, short_trial, data):
    words = [w for w in tiny_second(tmp_path) if not w.startswith(("first_stage", "data."))]
    words += ["conditioner=class_label", f"data={data}", "data.batch_size=4", "denoiser=unet"]
    if data == "latents":  # of which nothing is known
        words += ["conditioner.num_classes=10", "data.max_val_images=null"]
    facts, ended = plan_of(tmp_path, words)
    assert facts["flops"]["formula"] == ("3U" if data == "latents" else "3U + encoder")
    assert facts["flops"]["update"] == pytest.approx(facts["flops"]["update_by_formula"], rel=0.1)
    assert facts["time"]["measured_updates"] >= 2
    known = facts["time"]["estimated_seconds_per_validation"] is not None
    assert known == (data == "shapes")
    assert facts["latent_cache"]["num_images"] == (None if data == "latents" else 100_000)


def test_what_would_not_fit_or_take_too_long_is_not_tried(
    tmp_path, free_memory, short_trial, monkeypatch
):
    free_memory(2**20)
    facts, ended = plan_of(tmp_path, tiny("ae_f8"))
    assert "memory" in facts["time"]["not_measured"]
    assert facts["time"]["measured_updates"] == 0
    assert facts["time"]["estimated_seconds"] > 0
    (tmp_path / "plan.json").unlink()
    free_memory(2**60)
    monkeypatch.setattr(plan, "MAX_UPDATE_SECONDS", 1e-9)
    facts, ended = plan_of(tmp_path, tiny("ae_f8"))
    assert "update" in facts["time"]["not_measured"]
    assert facts["time"]["not_measured"] in ended.said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["resolution=[512,500]"], "resolution=[512,496]"),
        (["experiment=ldm_dit_s", "resolution=520"], "resolution=512"),
        (["output=nowhere/plan.json"], "nowhere"),
        (["data=image_folder", "data.root=nowhere"], "data.root=nowhere"),
        (["plan.num_image=3"], "'num_images'"),
        (["experiment=ldm_kl_f8", "downsampling_factor=4"], "downsampling_factor"),
    ],
)
def test_words_that_make_no_sense_are_refused_plainly(tmp_path, words, told):
    ended = command("plan", [*words, "measure=false"], tmp_path)
    assert ended.code == 1
    assert told in ended.said
    assert "Traceback" not in ended.output


@pytest.mark.parametrize("is_terminal", [False, True])
def test_the_tables_are_80_columns_wide_at_most(planned_512, is_terminal):
    facts = copy.deepcopy(planned_512[0])
    facts["latents"]["bits_per_pixel"] = 0.8125
    facts["time"] = {
        "not_measured": "too much memory for what is free",
        "measured_probe_flops_per_s": 1.234e12,
        "measured_seconds_per_update": 12_345.6,
        "measured_images_per_s": 0.123,
        "estimated_seconds_of_updates": 1e9,
        "num_validations": 1234,
        "estimated_seconds_per_validation": 12_345.6,
        "estimated_seconds": 1e10,
    }
    file = io.StringIO()
    print_plan(facts, console=Console(file=file, width=80, force_terminal=is_terminal))
    lines = re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue()).splitlines()
    assert len(lines) > 40
    assert max(map(len, lines)) <= 80, max(lines, key=len)


QUICK = "vqgan_f16"
SLOW = ("vq_f4", "ldm_celebahq", "ldm_dit_s", "ldm_imagenet_vq_f8")


@pytest.mark.parametrize(
    "experiment",
    [QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)],
)
def test_a_published_experiment_is_counted(tmp_path, experiment):
    words = [f"experiment={experiment}", "scale=paper", "measure=false"]
    facts, ended = plan_of(tmp_path, words)
    if experiment in PUBLISHED:
        assert facts["parameters"]["autoencoder"] == PUBLISHED[experiment][-1]
    formula = facts["flops"]["update_by_formula"]
    assert 0.95 * formula <= facts["flops"]["update"] <= 1.1 * formula
    for title in ("Parameters", "Operations", "Latents", "Memory", "Disk", "Time"):
        assert title in ended.output

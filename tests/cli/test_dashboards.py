"""What a training leaves for W&B and TensorBoard, read back from their files."""

import json
import math
import re

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ldm_lightning.checkpoints.checkpoint import load_checkpoint
from ldm_lightning.config import CONF_DIR, register_resolvers
from ldm_lightning.reporting.metrics_file import read_metrics
from tests.cli.run import ROOT, command, run_folder, summary_of, tiny
from tests.cli.second_stage import tiny_second
from tests.reporting.wandb_file import cli, read_wandb

PANELS = {"train", "val", "latent", "codebook", "images", "perf"}
PERFORMANCE = {
    "perf/train_images_per_s",
    "perf/data_wait_fraction",
    "perf/validation_s",
    "perf/peak_host_mib",
}
VALIDATED_AT = [2, 4]
POSITIONS = 10 * 8 * 8  # of the latents of ten images of 32 px at f 4


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield


def trained(folder, words):
    ended = command("train", words, folder)
    assert ended.code == 0, ended.output


@pytest.fixture(scope="module")
def run(offline, tmp_path_factory):
    """A VQ first stage of four updates, validated after two and four."""
    folder = tmp_path_factory.mktemp("wandb")
    trained(folder, tiny("vq_f4", logger="wandb", run_group="together"))
    return run_folder(folder, "vq_f4")


@pytest.fixture(scope="module")
def file(run):
    return read_wandb(run)


@pytest.fixture(scope="module")
def tensorboard_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tensorboard")
    trained(folder, tiny("vq_f4", logger="tensorboard"))
    return run_folder(folder, "vq_f4")


@pytest.fixture(scope="module")
def events(tensorboard_run):
    return EventAccumulator(str(tensorboard_run / "tensorboard")).Reload()


def scalars(run) -> dict[str, dict[int, float]]:
    """``metrics.csv`` by name and update."""
    found: dict[str, dict[int, float]] = {}
    for step, name, value in read_metrics(run / "metrics.csv"):
        found.setdefault(name, {})[step] = value
    return found


# W&B


def test_wandb_holds_every_scalar_of_metrics_csv_at_its_update(run, file):
    expected = scalars(run)
    assert {"val/psnr", "val/codebook_usage", "latent/std", "train/loss_codebook"} <= set(expected)
    for name, series in expected.items():
        assert file.series(name) == pytest.approx(series, rel=1e-12), name
    assert file.series("update") == {step: step for step in (1, 2, 3, 4)}


def test_wandb_has_nothing_outside_the_panels(run, file):
    assert {name.partition("/")[0] for name in file.metrics} == {*PANELS, "update"}
    shown = {name for row in file.history.values() for name in row if not name.startswith("_")}
    plain = {name for name in shown if "." not in name} - {"update"}
    assert plain == {*scalars(run), *PERFORMANCE}


def test_every_series_is_drawn_against_updates_by_a_hidden_axis(file):
    axis = file.metrics.pop("update")
    assert axis["options"]["hidden"]
    assert {metric["step_metric"] for metric in file.metrics.values()} == {"update"}
    file.metrics["update"] = axis


def test_the_summary_has_the_best_and_the_last_value(run, file):
    expected = scalars(run)
    for name, best, function in (
        ("val/psnr", "max", max),
        ("val/codebook_perplexity", "max", max),
        ("val/perceptual_tiny", "min", min),
        ("val/rfd_tiny", "min", min),
    ):
        values = expected[name]
        assert file.summary[name] == pytest.approx(
            {best: function(values.values()), "last": values[4]}
        )
    assert file.summary["latent/std"] == pytest.approx({"last": expected["latent/std"][4]})
    assert file.summary["state"] == "finished"
    assert file.exit_code == 0


def test_grids_are_under_one_name_and_show_the_same_images(run, file):
    paths = file.series("images/reconstruction.path")
    assert list(paths) == VALIDATED_AT
    pictures = []
    for step, path in paths.items():
        sent = next((run / "wandb").glob(f"offline-run-*/files/{path}"))
        assert sent.read_bytes() == (run / "images" / f"reconstruction_{step}.png").read_bytes()
        with Image.open(sent) as picture:
            pictures.append(np.asarray(picture))
    height = pictures[0].shape[0] // 3
    assert np.array_equal(pictures[0][:height], pictures[1][:height])  # the inputs
    assert not np.array_equal(pictures[0][height:], pictures[1][height:])


def test_the_codebook_histogram_counts_what_usage_and_perplexity_say(run, file):
    expected = scalars(run)
    histograms = file.series("codebook/histogram.values")
    assert list(histograms) == VALIDATED_AT
    for step, counts in histograms.items():
        assert (len(counts), sum(counts)) == (16, POSITIONS)
        shares = np.array([count for count in counts if count]) / POSITIONS
        assert len(shares) / 16 == expected["val/codebook_usage"][step]
        perplexity = math.exp(-(shares * np.log(shares)).sum())
        assert perplexity == pytest.approx(expected["val/codebook_perplexity"][step], rel=1e-6)


@pytest.mark.parametrize("kind", ["mean", "std"])
def test_the_latents_channels_are_spread_between_their_extremes(run, file, kind):
    bars = file.series(f"latent/channel_{kind}s.values")
    edges = file.series(f"latent/channel_{kind}s.bins")
    assert list(bars) == list(edges) == VALIDATED_AT
    channels = summary_of(run)["per_channel"][f"latent/{kind}"]
    assert sum(bars[4]) == len(channels) == 4
    assert edges[4][0] == pytest.approx(min(channels))
    assert edges[4][-1] == pytest.approx(max(channels))


def test_performance_is_measured_and_stays_out_of_metrics_csv(run, file):
    assert PERFORMANCE.isdisjoint(scalars(run))
    speed = file.series("perf/train_images_per_s")
    assert set(speed) == {2, 4}  # the first update is warming up; the third follows a validation
    assert all(0 < value < 1e5 for value in speed.values())
    assert all(0 <= value <= 1 for value in file.series("perf/data_wait_fraction").values())
    assert list(file.series("perf/validation_s")) == VALIDATED_AT


def test_the_configuration_is_whole_and_says_what_the_run_was_made_with(run, file):
    written = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    assert {key: file.config[key] for key in written} == written
    summary = summary_of(run)
    for key in ("commit", "versions", "device", "parameters", "num_threads"):
        assert file.config[key] == summary[key]
    assert file.config["commit"].startswith(file.run["git"]["commit"])
    assert len(file.run["git"]["commit"]) == 40


def test_the_run_is_named_grouped_and_found_again(run, file):
    assert (file.run["run_group"], file.run["job_type"]) == ("together", "first_stage")
    assert file.run["display_name"] == f"vq_f4 {run.name}"
    assert summary_of(run)["wandb"] == {"id": file.run["run_id"]}


def test_no_code_is_stored(run):
    files = [path for path in run.glob("wandb/*/files/**/*") if path.is_file()]
    names = {path.name for path in files if path.suffix != ".png"}
    # W&B writes a log of what is printed only in the first run of a process.
    assert names - {"output.log"} == {"requirements.txt"}


def test_a_second_stage_names_the_first_one_it_stands_on(offline, run, tmp_path):
    words = tiny_second(run, "ldm_vq_f4", logger="wandb", run_group="together")
    trained(tmp_path, words)
    second = run_folder(tmp_path, "ldm_vq_f4")
    file = read_wandb(second)
    assert (file.run["run_group"], file.run["job_type"]) == ("together", "second_stage")
    stored = load_checkpoint(second / "checkpoints" / "last.ckpt")["second_stage"]["first_stage"]
    assert file.config["first_stage_used"] == stored
    assert stored["path"] == str(run / "checkpoints" / "best.ckpt")
    for name, series in scalars(second).items():
        assert file.series(name) == pytest.approx(series, rel=1e-12), name
    assert set(file.summary["val/loss"]) == set(file.summary["gen/fd_tiny"]) == {"min", "last"}
    assert list(file.series("images/samples.path")) == VALIDATED_AT
    for name in ("ceiling", "prior"):  # never change
        assert list(file.series(f"images/{name}.path")) == VALIDATED_AT[:1]


# TensorBoard


def test_tensorboard_gets_the_same_scalars(tensorboard_run, events):
    expected = scalars(tensorboard_run)
    assert set(events.Tags()["scalars"]) == {*expected, *PERFORMANCE}
    for name, series in expected.items():
        seen = {event.step: event.value for event in events.Scalars(name)}
        assert seen == pytest.approx(series, rel=1e-6), name


def test_tensorboard_gets_the_same_pictures_and_histograms(tensorboard_run, events, file):
    sent = events.Images("images/reconstruction")
    assert [event.step for event in sent] == VALIDATED_AT
    with Image.open(tensorboard_run / "images" / "reconstruction_4.png") as drawn:
        assert (sent[1].width, sent[1].height) == drawn.size
    assert set(events.Tags()["histograms"]) == {
        name.removesuffix(".bins") for name in file.history[4] if name.endswith(".bins")
    }
    for event in events.Histograms("codebook/histogram"):
        assert sum(event.histogram_value.bucket) == POSITIONS


def test_tensorboard_shows_the_configuration(tensorboard_run, events):
    texts = events.Tensors("config/text_summary")
    text = texts[-1].tensor_proto.string_val[0].decode()
    shown = json.loads(text.removeprefix("```json\n").removesuffix("\n```"))
    assert shown["bottleneck"]["num_codes"] == 16
    assert shown["commit"] == summary_of(tensorboard_run)["commit"]


# Groups, and the documented commands


@pytest.mark.parametrize(
    ("words", "group", "job_type"),
    [
        (["experiment=kl_f8"], None, "first_stage"),
        (["experiment=kl_f8", "sweep_name=widths"], "widths", "first_stage"),
        (["experiment=ldm_kl_f8", "sweep_name=widths"], "widths", "second_stage"),
        (["sweep_name=widths", "run_group=mine"], "mine", "first_stage"),
        (["logger.wandb.group=mine", "logger.wandb.job_type=try"], "mine", "try"),
    ],
)
def test_group_and_job_type_follow_unless_they_are_given(words, group, job_type):
    register_resolvers()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = compose("train", overrides=["logger=wandb", *words])
    assert (cfg.logger.wandb.group, cfg.logger.wandb.job_type) == (group, job_type)


def test_the_documented_commands_find_the_runs(run, tmp_path):
    text = (ROOT / "docs" / "dashboards.md").read_text(encoding="utf-8")
    sync = re.findall(r"^wandb sync (\S+)", text, flags=re.MULTILINE)
    places = ["NAME/RUN", "sweeps/SWEEP_NAME/0_ab", "sweeps/SWEEP_NAME/1_cd"]
    places += ["NAME_chain/CHAIN/first_stage", "NAME_chain/CHAIN/second_stage"]
    for place in places:
        (tmp_path / "outputs" / place).mkdir(parents=True)
        (tmp_path / "outputs" / place / "wandb").symlink_to(run / "wandb")
    found = [sorted(tmp_path.glob(pattern)) for pattern in sync]
    assert [len(paths) for paths in found] == [1, 2, 2]
    said = cli("sync", "--dry-run", *found[0], folder=tmp_path)
    assert re.search(r"\bsync 1\b", said)
    assert f"run-{summary_of(run)['wandb']['id']}.wandb" in said
    (shown,) = re.findall(r"^wandb leet (\S+)", text, flags=re.MULTILINE)
    said = cli("leet", "inspect", "--summary", "--json", shown, folder=tmp_path)
    assert "val/psnr" in said

"""The gate on first stages that were trained for a few updates by the command line."""

import logging
import re
import shutil

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import ldm_lightning.evaluation.gate as gate_module
import ldm_lightning.evaluation.reconstruct as reconstruct_module
from ldm_lightning.config import CONF_DIR, register_resolvers
from ldm_lightning.evaluation.gate import GateError, run_gate
from ldm_lightning.metrics.names import describe
from ldm_lightning.metrics.thresholds import CONDITIONS, read_thresholds
from ldm_lightning.runs.run_folder import RunFolder
from tests.cli.run import command, run_folder, summary_of, tiny

LOOSE = {
    "psnr": {"metric": "val/psnr", "at_least": 5.0},
    "perceptual": {"metric": "val/perceptual_tiny", "at_most": 5.0, "when": "tiny"},
    "lpips": {"metric": "val/lpips", "at_most": 0.4, "when": "standard"},
    "std": {"metric": "latent/std", "at_least": 0.001, "at_most": 1000.0},
    "usage": {"metric": "val/codebook_usage", "at_least": 0.01, "when": "codes"},
}


def trained(folder, experiment, **changes):
    words = [word for word in tiny(experiment, **changes) if not word.startswith("discriminator.")]
    ended = command("train", [*words, "discriminator=none"], folder)
    assert ended.code == 0, ended.output
    return run_folder(folder, experiment)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    changes = {"max_steps": 60, "validation__every_steps": 30, "optim__learning_rate": 5e-3}
    return trained(tmp_path_factory.mktemp("good"), "kl_f4", **changes)


@pytest.fixture(scope="module")
def collapsed(tmp_path_factory):
    changes = {
        "validation__linear_floor": "true",
        "loss__kl_weight": 10,
        "bottleneck__initial_log_variance": 0,
        "max_steps": 40,
    }
    return trained(tmp_path_factory.mktemp("kl10"), "kl_f4", **changes)


@pytest.fixture(scope="module")
def psnr(good):
    """What its own validation measured."""
    return summary_of(good)["metrics"]["val/psnr"]


def changed_decoder(run, folder, change):
    """A copy of a run whose decoder's weights went through ``change``."""
    shutil.copytree(run, folder)
    (folder / "checkpoints" / "best.ckpt").unlink()
    path = folder / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    for name, tensor in checkpoint["ema"].items():
        if name.startswith("decoder."):
            checkpoint["ema"][name] = change(tensor)
    path.unlink()  # it may be a link to the original
    torch.save(checkpoint, path)
    return folder


@pytest.fixture
def damaged(good, tmp_path):
    """Noise four times as large as the weights: worse than what four updates have reached."""
    generator = torch.Generator().manual_seed(0)

    def perturb(tensor):
        noise = torch.randn(tensor.shape, generator=generator)
        return tensor + 4 * tensor.std(correction=0) * noise

    return changed_decoder(good, tmp_path / "damaged", perturb)


@pytest.fixture
def gate(tmp_path):
    """Run the gate of a second stage in ``tmp_path``; measurements are counted."""

    def run(
        checkpoint,
        *,
        mode="stop",
        psnr=None,
        data=None,
        features=None,
        weights="ema",
        linear_floor=False,
    ):
        thresholds = dict(LOOSE)
        if psnr is not None:
            thresholds["psnr"] = {"metric": "val/psnr", "at_least": psnr}
        return run_gate(
            OmegaConf.create(
                {"mode": mode, "linear_floor": linear_floor, "thresholds": thresholds}
            ),
            checkpoint=checkpoint,
            weights=weights,
            data=data,
            features=features,
            cache_dir=tmp_path / "cache",
            run_folder=RunFolder.create(tmp_path / "second"),
        )

    return run


@pytest.fixture
def measurements(monkeypatch):
    """One entry for each time that images were reconstructed."""
    seen = []
    reconstruct = reconstruct_module.reconstruct

    def counted(first_stage, *args, **options):
        seen.append(first_stage.path)
        return reconstruct(first_stage, *args, **options)

    for module in (gate_module, reconstruct_module):  # evaluate imports it when it is called
        monkeypatch.setattr(module, "reconstruct", counted)
    return seen


def composed(*words):
    register_resolvers()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("train", overrides=list(words))


def test_a_good_first_stage_passes_with_the_figures_of_its_own_validation(
    good, psnr, gate, tmp_path, capsys
):
    verdict = gate(good)
    assert verdict.passed
    assert verdict.causes == ()
    values = {row.threshold.metric: row.value for row in verdict.rows}
    assert set(values) == {"val/psnr", "val/perceptual_tiny", "latent/std"}
    own = summary_of(good)["metrics"]
    assert values == pytest.approx({name: own[name] for name in values}, rel=1e-5)
    assert (tmp_path / "second" / "images" / "gate.png").is_file()
    written = summary_of(tmp_path / "second")["gate"]
    assert written["passed"] is True
    assert written["metrics"]["val/psnr"] == pytest.approx(psnr, rel=1e-5)
    assert written["wanted"]["val/psnr"] == "at least 5"
    assert written["protocol"]["psnr"]["num_images"] == 10
    shown = capsys.readouterr().out
    assert "held-out images: 10" in shown
    assert "at least 5" in shown


def test_a_damaged_decoder_is_refused_with_that_reason(damaged, psnr, gate, tmp_path):
    with pytest.raises(GateError) as caught:
        gate(damaged, psnr=psnr - 1)
    message = str(caught.value)
    assert re.search(rf"val/psnr is .*{psnr - 1:g}\b", message)
    assert re.search("decoder.*encoder", message)
    assert "collapsed" not in message
    assert str(tmp_path / "second" / "images" / "gate.png") in message
    assert "gate.mode=warn" in message
    assert "gate.mode=skip" in message
    written = summary_of(tmp_path / "second")["gate"]
    assert written["passed"] is False
    assert list(written["causes"]) == ["damaged_weights"]


def test_a_kl_weight_of_ten_is_refused_with_that_reason(collapsed, psnr, gate):
    with pytest.raises(GateError) as caught:
        gate(collapsed, psnr=psnr - 1)
    message = str(caught.value)
    assert "collapsed" in message
    assert re.search(r"loss\.kl_weight.*\b10\b", message)
    assert "damaged" not in message


def test_damage_shows_without_the_records_of_the_run(good, psnr, gate, tmp_path):
    run = changed_decoder(good, tmp_path / "damaged", lambda tensor: 4 * tensor)
    moved = tmp_path / "moved.ckpt"
    shutil.copy(run / "checkpoints" / "last.ckpt", moved)
    with pytest.raises(ValueError, match=r"data=\.\.\. and features=\.\.\."):
        gate(moved)
    own = OmegaConf.load(good / "config.yaml")
    with pytest.raises(GateError, match="dB.* dB.*gray"):
        gate(moved, psnr=psnr - 1, data=own.data, features=own.features)


def test_an_earlier_gate_is_used_again_and_other_weights_are_measured(
    good, damaged, psnr, gate, measurements, tmp_path
):
    first = gate(good)
    picture = (tmp_path / "second" / "images" / "gate.png").read_bytes()
    shutil.rmtree(tmp_path / "second")
    assert gate(good) == first
    assert (tmp_path / "second" / "images" / "gate.png").read_bytes() == picture
    assert len(measurements) == 1
    assert not gate(damaged, psnr=psnr - 1, mode="warn").passed
    assert len(measurements) == 2
    gate(good, weights="raw")
    assert len(measurements) == 3


def test_an_evaluation_is_used_again_where_it_saw_the_same(good, gate, measurements, tmp_path):
    words = [f"checkpoint={good}", f"cache_dir={tmp_path / 'cache'}", "linear_floor=false"]
    assert command("evaluate", words, tmp_path).code == 0
    figures = summary_of(run_folder(tmp_path, "evaluate"))["metrics"]
    verdict = gate(good)
    assert verdict.rows[0].value == figures["test/psnr"]
    assert len(measurements) == 1
    (record,) = (tmp_path / "cache" / "evaluations").glob("*.json")
    record.write_text(record.read_text().replace('"psnr": ', '"psnr": 1'))
    assert gate(good) == verdict
    assert len(measurements) == 2


def test_the_data_of_the_second_stage_are_measured_and_not_confused(good, gate, measurements):
    words = ["experiment=kl_f4", "data.num_val_images=6", "data.textures=false"]
    own = gate(good)
    other = gate(good, data=composed(*words).data)
    assert other.rows[0].value != own.rows[0].value
    assert len(measurements) == 2


def test_an_image_of_other_channels_is_refused(good, gate):
    gray = composed("experiment=kl_f4", "image_channels=1").data
    with pytest.raises(ValueError, match=r"image_channels=1\b.*\b3\b"):
        gate(good, data=gray)


def test_codes_are_judged_where_there_are_any(tmp_path, gate):
    run = trained(tmp_path, "vq_f4", max_steps=2)
    metrics = [row.threshold.metric for row in gate(run, psnr=1.0).rows]
    assert metrics == ["val/psnr", "val/perceptual_tiny", "latent/std", "val/codebook_usage"]


def test_warn_says_the_same_and_goes_on(damaged, psnr, gate, caplog):
    with caplog.at_level(logging.WARNING):
        verdict = gate(damaged, psnr=psnr - 1, mode="warn")
    assert not verdict.passed
    assert re.search("val/psnr.*decoder", caplog.text.replace("\n", " "))


def test_skip_measures_nothing_and_says_so(gate, measurements, caplog):
    with caplog.at_level(logging.WARNING):
        assert gate("nowhere", mode="skip") is None
    assert "gate" in caplog.text
    assert measurements == []


def test_off_is_refused_and_so_is_a_mistyped_threshold_even_where_skipped(gate):
    with pytest.raises(ValueError, match="False.*YAML"):
        gate("nowhere", mode=False)
    with pytest.raises(ValueError, match=r"psnr\.at_least.*'high'"):
        gate("nowhere", mode="skip", psnr="high")


@pytest.mark.parametrize("mode", ["stop", "warn"])
def test_weights_that_are_not_finite_are_refused_by_name(good, gate, tmp_path, mode):
    run = changed_decoder(good, tmp_path / "nan", lambda tensor: tensor * float("nan"))
    with pytest.raises(GateError, match=r"decoder\.\S+ and \d+ more.*NaN"):
        gate(run, mode=mode)


def test_measured_or_not_the_run_goes_on_with_the_same_random_numbers(good, gate):
    draws = []
    for mode in ("skip", "stop", "stop"):
        torch.manual_seed(0)
        gate(good, mode=mode)
        draws.append(torch.rand(4))
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], draws[2])


def test_the_gates_of_the_configuration_can_be_read():
    for path in (CONF_DIR / "gate").glob("*.yaml"):
        gate = OmegaConf.to_container(OmegaConf.load(path))
        for threshold in read_thresholds(gate["thresholds"], conditions=CONDITIONS):
            assert describe(threshold.metric)
    default = OmegaConf.load(CONF_DIR / "gate" / "default.yaml")
    assert default.mode == "stop"
    for features in ("tiny", "standard"):
        assert len(read_thresholds(default.thresholds, conditions={features})) == 4


def test_what_linear_maps_beat_is_untrained(collapsed, gate, tmp_path):
    with pytest.raises(GateError):
        gate(collapsed, linear_floor=True)
    stored = summary_of(tmp_path / "second")["gate"]
    assert not stored["passed"]
    assert "untrained" in stored["causes"]
    own = summary_of(collapsed)["metrics"]
    floor = stored["protocol"]["linear_floor_psnr"]
    assert floor["latent_channels"] == 4
    assert floor["num_fitted"] > 0
    bounds = {
        name.removeprefix("val/"): text.split()[-1] for name, text in stored["wanted"].items()
    }
    for name in ("psnr", "perceptual_tiny"):
        assert float(bounds[name]) == pytest.approx(own[f"val/linear_floor_{name}"], rel=1e-4)

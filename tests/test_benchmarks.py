"""The benchmarks run, check what they compare, and keep what they measured."""

import csv
import io
import json
import math

import pytest
import torch

from benchmarks import busy_cores
from benchmarks.first_stage import Race, build_module
from benchmarks.networks import FirstStageShape, build_players, num_parameters_of_diffusers
from benchmarks.ours import OURS, plain_trainer, time_ours
from benchmarks.results import Row, write_rows
from benchmarks.rules import Alternating, LossTwice, OneForward, TwoForwards
from benchmarks.time_to_quality import __main__ as time_to_quality
from benchmarks.time_to_quality.clock import TURN_OVER, Time, TrainingClock
from benchmarks.time_to_quality.measuring import Point, read
from benchmarks.time_to_quality.original import OriginalModule
from benchmarks.time_to_quality.summary import best_rate, ratios
from benchmarks.time_to_quality.training import ORIGINAL, SEARCH
from benchmarks.timing import Spread, Timings
from ldm_lightning.loss.perceptual import TinyPerceptual
from tests.cli.run import process
from tests.module.small import images as small_images
from tests.module.small import small_module

SMALL = FirstStageShape("kl_f2", (1, 2), 3, 128, 32, 2)  # diffusers wants 32 groups in every norm


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # Lightning about missing validations
def test_every_rule_begins_with_our_loss(monkeypatch):
    """All but the alternating one, whose adaptive weight knows no perceptual gradient."""
    monkeypatch.setattr("benchmarks.first_stage.random_lpips", TinyPerceptual)
    rules = {
        kind.__name__: kind(build_players(SMALL, TinyPerceptual()))
        for kind in (TwoForwards, LossTwice, OneForward, Alternating)
    }
    module, images = build_module(SMALL), SMALL.images()
    race = Race(module, rules, images)
    timings = time_ours(module, {OURS: {"image": images}}, race.others, plain_trainer(max_steps=2))
    race.check(tolerance=1e-5)
    assert timings.num_rounds == 1
    assert set(timings.seconds) == {OURS, *rules}
    expected = num_parameters_of_diffusers(SMALL)
    assert all(rule.players.num_parameters["autoencoder"] == expected for rule in rules.values())
    for rule in rules.values():  # and each has learned
        first = build_players(SMALL, TinyPerceptual())
        for now, before in (
            (rule.players.autoencoder, first.autoencoder),
            (rule.players.discriminator, first.discriminator),
        ):
            assert not torch.equal(next(now.parameters()), next(before.parameters()))


def test_another_loss_is_not_compared(monkeypatch):
    monkeypatch.setattr("benchmarks.first_stage.random_lpips", TinyPerceptual)
    rules = {"other": TwoForwards(build_players(SMALL, TinyPerceptual()))}
    race = Race(build_module(SMALL), rules, SMALL.images())
    race.first_losses = {OURS: 1.0, "other": 1.1}
    with pytest.raises(AssertionError):
        race.check(tolerance=1e-5)


def test_ratios_are_paired_by_round():
    timings = Timings({"a": [1.0, 4.0, 9.0], "b": [2.0, 4.0, 3.0]})
    assert timings.ratio("a", "b") == Spread(1.0, 0.5, 3.0)


def test_a_missed_goal_is_named_in_the_results(tmp_path):
    row = Row(
        part="part",
        what="a / b",
        setting="small",
        value=Spread(0.8, 0.7, 0.9),
        num_rounds=3,
        goal=0.75,
        seconds={"a": 0.8},
        facts={},
    )
    write_rows([row], tmp_path / "results.json")
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored["rows"][0]["verdict"] == "MISSED"
    assert {"device", "num_threads", "versions", "commit"} <= stored.keys()


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_numbers_and_a_figure(tmp_path):
    words = ["-m", "benchmarks", "--quick", "--part", "sampling", "--output", str(tmp_path)]
    ended = process(words, tmp_path)
    assert ended.code == 0, ended.output
    assert "DDIM" in ended.said
    stored = json.loads((tmp_path / "results.json").read_text())
    assert {row["part"] for row in stored["rows"]} == {"sampling"}
    assert all(row["value"]["low"] <= row["value"]["median"] for row in stored["rows"])
    assert (tmp_path / "ratios.png").stat().st_size > 10_000


@pytest.mark.slow
def test_ways_to_wait_are_timed_in_processes_of_their_own_beside_others():
    ways = (busy_cores.SPINNING, "sleeping")
    (row,) = busy_cores.compare(threads=1, num_burners=1, num_rounds=1, ways=ways)
    assert row.seconds.keys() == set(ways)
    assert row.value.median == row.seconds["sleeping"] / row.seconds[busy_cores.SPINNING] > 0


def point(arm, seconds, psnr, perceptual, frechet, **changes):
    """A point of a comparison of three minutes, a quarter of it on the processor."""
    values = {
        **{"case": "kl_f8", "arm": arm, "seed": 0, "learning_rate": 1e-3, "minutes": 3.0},
        **{"threads": 1, "precision": "32", "num_parameters": 1, "updates": 1},
        **{"seconds": seconds, "cpu_seconds": seconds / 4, "psnr": psnr},
        **{"perceptual_tiny": perceptual, "rfd_tiny": frechet},
    }
    return Point(**{**values, **changes})


def test_the_ratio_is_of_the_first_time_that_has_all_three_values_at_once():
    points = [
        point(ORIGINAL, 60.0, 20.0, 0.5, 1.0),
        point(ORIGINAL, 121.0, 21.0, 0.4, 0.9),
        point(OURS, 6.0, 20.0, 0.5, 1.1),
        point(OURS, 12.0, 20.5, 0.5, 1.0),
        point(OURS, 30.0, 20.9, 0.3, 0.5),
        point(ORIGINAL, 60.0, 0.0, 9.0, 9.0, seed=1),  # ours has no such seed
    ]
    found = ratios(points)
    assert [(one.against, one.seed, one.after_minutes) for one in found] == [
        (ORIGINAL, 0, 1.0),
        (ORIGINAL, 0, 2.0),
    ]
    assert [one.value for one in found] == [0.2, math.inf]


def test_the_best_learning_rate_is_first_in_most_metrics_at_the_end():
    points = [
        point(SEARCH, 10.0, 30.0, 0.1, 0.1, learning_rate=1e-4),  # not its end
        point(SEARCH, 60.0, 19.0, 0.6, 1.1, learning_rate=1e-4),
        point(SEARCH, 60.0, 20.0, 0.5, 1.2, learning_rate=3e-4),
        point(SEARCH, 60.0, math.nan, math.nan, math.nan, learning_rate=3e-3),
    ]
    assert best_rate(points, "kl_f8") == 3e-4
    assert best_rate(points, "kl_f4") is None


def test_the_clock_counts_neither_measuring_nor_the_turns_of_others(monkeypatch, capsys):
    times = iter(range(100))
    monkeypatch.setattr(Time, "now", lambda: Time(float(next(times)), 0.5 * next(times)))
    monkeypatch.setattr("sys.stdin", io.StringIO("\n\n"))
    clock = TrainingClock(limit=20.0, turn_seconds=3.0)
    clock.wait_for_turn()
    clock.timed(lambda: None)
    assert clock.time.seconds == 2
    clock.run()
    clock.give_turn()  # 4 seconds: over
    assert capsys.readouterr().out == f"{TURN_OVER}\n"
    clock.stand()
    assert clock.fraction == clock.time.seconds / 20.0


@pytest.mark.parametrize("has_begun", [None, False, True])
def test_the_original_updates_by_its_formula(has_begun):
    autoencoder = small_module().autoencoder
    begins = None if has_begun is None else (lambda: has_begun)
    module = OriginalModule(autoencoder, learning_rate=1e-3, has_begun=begins, seed=3)
    images = small_images(2, size=32)
    loss = module.generator_loss(images)
    noise = torch.randn(
        autoencoder.latent_shape(images.shape), generator=torch.Generator().manual_seed(3)
    )
    output = autoencoder(images, noise)
    made = output.reconstructions
    distance = TinyPerceptual()(made, images)
    elements = (made - images).abs() + distance[:, None, None, None]
    expected = elements.sum() / len(images) + 1e-6 * output.bottleneck.terms["kl"].mean()
    if has_begun:
        layer = autoencoder.last_layer
        adversarial = -module.discriminator(made).mean()
        norms = [
            torch.autograd.grad(part, layer, retain_graph=True)[0].norm()
            for part in (elements.sum() / len(images), adversarial)
        ]
        expected = expected + 0.5 * norms[0] / (norms[1] + 1e-4) * adversarial
    torch.testing.assert_close(loss, expected)
    if has_begun is not None:
        assert bool(module.discriminator_loss(images) > 0) == has_begun


@pytest.mark.slow
def test_arms_train_in_turns_and_the_report_tells_ratios_and_curves(tmp_path, monkeypatch):
    table = tmp_path / "points.csv"
    images = ["data=shapes", "data.num_train_images=16", "data.num_val_images=4"]
    small = ["autoencoder.base_width=8", "data.batch_size=2", "data.num_workers=0"]
    options = ["--case", "kl_f4", "--minutes", "0.01", "--threads", "1", "--num-images", "4"]
    arms = ["--arm", OURS, "--arm", ORIGINAL, "--rate", "1e-3", "--turn-seconds", "0.1"]
    for words in (
        ["race", *options, *arms, "--output", str(table), *images, *small],
        ["report", "--output", str(table)],
    ):
        monkeypatch.setattr("sys.argv", ["time_to_quality", *words])
        time_to_quality.main()
    points = read(table)
    assert {one.arm for one in points} == {OURS, ORIGINAL}
    sizes = {one.arm: one.num_parameters for one in points}
    assert 0.9 < sizes[OURS] / sizes[ORIGINAL] < 1.1
    for arm in sizes:
        seconds = [one.seconds for one in points if one.arm == arm]
        assert seconds == sorted(seconds)
    with (tmp_path / "ratios.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["against"] for row in rows} == {ORIGINAL}
    assert (tmp_path / "curves.png").stat().st_size > 10_000

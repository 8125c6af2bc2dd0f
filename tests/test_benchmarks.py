"""The benchmarks run, check what they compare, and keep what they measured."""

import json

import pytest
import torch

from benchmarks import busy_cores
from benchmarks.first_stage import Race, build_module
from benchmarks.networks import FirstStageShape, build_players, num_parameters_of_diffusers
from benchmarks.ours import OURS, plain_trainer, time_ours
from benchmarks.results import Row, write_rows
from benchmarks.rules import Alternating, LossTwice, OneForward, TwoForwards
from benchmarks.timing import Spread, Timings
from ldm_lightning.loss.perceptual import TinyPerceptual
from tests.cli.run import process

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

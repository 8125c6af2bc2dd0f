"""The predictions of experiments/scale: closed forms, limits, and the figures that are stored."""

import csv
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "experiments" / "scale"
ETHERNET = "Ethernet 100 Gb/s"


@pytest.fixture(scope="module")
def scale():
    spec = importlib.util.spec_from_file_location("scale_simulate", FOLDER / "simulate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def work(scale):
    return scale.Workload(
        name="any",
        num_hidden=10**8,
        num_bare=0,
        flops=1e12,
        backward_fraction=0.5,
        batch_size=4,
        images_per_core_s=1e9,
    )


@pytest.mark.parametrize("num", [1, 2, 3, 8, 64])
def test_a_ring_takes_as_long_as_its_messages_one_by_one(scale, num):
    # Every process sends one N-th part to its neighbor, N - 1 times to sum, N - 1 to spread.
    seconds = sum(1e9 / num / 5e9 for _ in range(2 * (num - 1)))
    assert scale.ring_seconds(1e9, num, 5e9) == pytest.approx(seconds)


def test_more_than_one_machine_adds_a_ring_over_machines(scale):
    given = scale.Assumptions(nvlink=100e9, gpus_per_machine=8)
    inside = scale.all_reduce_seconds(1e9, 8, 10e9, given)
    assert inside == pytest.approx(2 * 7 / 8 * 0.01)
    assert scale.all_reduce_seconds(1e9, 64, 10e9, given) - inside == pytest.approx(2 * 7 / 8 * 0.1)


def test_what_does_not_hide_behind_the_backward_pass_lowers_the_efficiency(scale, work):
    given = scale.Assumptions(peak_flops=1e13, utilization=0.4, overlap=0.0, nvlink=1e30)
    row = scale.predict(work, 64, ETHERNET, "fp32", given)
    exchange = 2 * 7 / 8 * 4e8 / scale.NETWORKS[ETHERNET]
    assert row.compute_ms == pytest.approx(1000.0)
    assert row.gradient_mb == 400.0
    assert row.efficiency == pytest.approx(1 / (1 + exchange))
    hidden = replace(given, overlap=1.0)
    assert scale.predict(work, 64, ETHERNET, "fp32", hidden).efficiency == 1.0
    bare = replace(work, num_hidden=0, num_bare=10**8)
    assert scale.predict(bare, 64, ETHERNET, "fp32", hidden).efficiency == row.efficiency


def test_half_the_bytes_take_half_the_time(scale, work):
    times = [scale.predict(work, 64, ETHERNET, kind).all_reduce_ms for kind in ("fp32", "bf16")]
    assert times[0] == pytest.approx(2 * times[1])


def test_too_few_cores_set_the_pace(scale, work):
    slow = replace(work, images_per_core_s=1.0)
    row = scale.predict(slow, 8, ETHERNET, "fp32")
    assert row.data_ms == pytest.approx(1000 * 4 / scale.ASSUMPTIONS.cores_per_gpu)
    assert row.efficiency == pytest.approx(row.compute_ms / row.data_ms)
    assert row.cores_needed_per_gpu == pytest.approx(row.images_per_s_and_gpu)


@pytest.mark.parametrize("network", ["InfiniBand 8 x 400 Gb/s", ETHERNET, "Ethernet 25 Gb/s"])
def test_the_smallest_batch_is_the_first_that_reaches_90_percent(scale, work, network):
    smallest = scale.predict(work, 64, network, "fp32").smallest_batch_for_90_percent
    enough, less = (
        scale.predict(replace(work, batch_size=batch), 64, network, "fp32").efficiency
        for batch in (smallest, smallest - 1)
    )
    assert enough >= 0.9 > less


def test_the_stored_figures_are_those_of_the_published_models(scale, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["simulate.py", "--output", str(tmp_path)])
    scale.main()
    stored, made = (
        list(csv.reader((folder / "results.csv").read_text(encoding="utf-8").splitlines()))
        for folder in (FOLDER, tmp_path)
    )
    assert made == stored
    assert len(made) == 1 + 2 * 2 * 4
    sizes = {row[0]: float(row[made[0].index("gradient_mb")]) for row in made if row[3] == "fp32"}
    assert sizes["kl_f8"] == pytest.approx(4 * (83.65 + 2.77), abs=0.2)
    assert sizes["ldm_celebahq"] == pytest.approx(4 * 274.06, abs=0.5)
    assert (tmp_path / "efficiency.png").stat().st_size > 10_000

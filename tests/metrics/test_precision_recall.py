import pytest
import torch
from torch_fidelity.metric_prc import prc_features_to_metric

from ldm_lightning.metrics import precision_recall
from ldm_lightning.metrics.precision_recall import precision_and_recall


def rows(count, dim=6, *, seed=0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64) + shift


def naive(points, centers):
    """Eq. 1 of Kynkäänniemi et al., pair by pair."""
    inside = 0
    for point in points:
        for i, center in enumerate(centers):
            others = sorted(
                (center - other).norm().item() for j, other in enumerate(centers) if j != i
            )
            if (point - center).norm().item() <= others[2]:
                inside += 1
                break
    return inside / len(points)


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.5])
def test_equals_the_definition_and_torch_fidelity(shift):
    samples, real = rows(30, seed=1), rows(40, seed=2, shift=shift)
    result = precision_and_recall(samples, real)
    assert result == (naive(samples, real), naive(real, samples))
    theirs = prc_features_to_metric(
        samples,
        real,
        prc_neighborhood=3,
        prc_batch_size=10000,
        save_cpu_ram=False,
        verbose=False,
    )
    assert result == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-6)


def test_blocks_do_not_change_the_result(monkeypatch):
    samples, real = rows(50, seed=1), rows(40, seed=2, shift=0.7)
    whole = precision_and_recall(samples, real)
    monkeypatch.setattr(precision_recall, "BLOCK_ROWS", 7)
    assert precision_and_recall(samples, real) == whole
    assert 0 < whole.precision < 1


def test_a_set_lies_within_itself_also_where_images_repeat():
    features = 100 + rows(5).repeat(6, 1).float()
    assert precision_and_recall(features, features) == (1.0, 1.0)
    assert precision_and_recall(features, features + 50) == (0.0, 0.0)


def test_few_modes_cost_recall_and_wide_samples_cost_precision():
    real = rows(200, seed=1)
    narrow, wide = 0.2 * rows(200, seed=2), 5 * rows(200, seed=3)
    assert precision_and_recall(narrow, real).precision > 0.9
    assert precision_and_recall(narrow, real).recall < 0.3
    assert precision_and_recall(wide, real).precision < 0.3


def test_needs_a_third_neighbor():
    assert precision_and_recall(rows(3), rows(10)) is None
    assert precision_and_recall(rows(10), rows(3)) is None
    assert precision_and_recall(rows(4), rows(4)) is not None

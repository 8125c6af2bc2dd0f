import pytest
import torch
from torch_fidelity.metric_kid import kid_features_to_metric
from torchmetrics.image.kid import poly_mmd

from ldm_lightning.metrics import kernel_distance as module
from ldm_lightning.metrics.kernel_distance import kernel_distance, squared_discrepancy


def rows(count, dim=8, *, seed=0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64) + shift


def test_whole_sets_equal_torch_fidelity_and_torchmetrics():
    samples, real = rows(40, seed=1), rows(40, seed=2, shift=0.3)
    result = kernel_distance(samples, real)
    assert (result.subset_size, result.num_subsets) == (40, 1)
    theirs = kid_features_to_metric(
        samples,
        real,
        kid_subsets=1,
        kid_subset_size=40,
        kid_kernel="poly",
        kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None,
        kid_kernel_poly_coef0=1,
        rng_seed=0,
        verbose=False,
    )["kernel_inception_distance_mean"]
    assert result.distance == pytest.approx(theirs, rel=1e-9)
    assert result.distance == pytest.approx(poly_mmd(real, samples).item(), rel=1e-9)


def test_sets_of_two_sizes_equal_the_sum_over_pairs():
    x, y = rows(4, seed=1), rows(3, seed=2)

    def kernel(a, b):
        return (a @ b / 8 + 1) ** 3

    within = [
        sum(kernel(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j)
        / (len(z) * (len(z) - 1))
        for z in (x, y)
    ]
    between = sum(kernel(a, b) for a in x for b in y) / 12
    expected = within[0] + within[1] - 2 * between
    assert squared_discrepancy(x, y).item() == pytest.approx(expected.item(), rel=1e-10)


def test_is_unbiased():
    values = [
        kernel_distance(rows(20, seed=i), rows(20, seed=1000 + i)).distance for i in range(300)
    ]
    values = torch.tensor(values, dtype=torch.float64)
    assert abs(values.mean()) < 4 * values.std() / 300**0.5
    assert values.min() < 0 < values.max()


def test_subsets_estimate_the_whole_and_are_the_same_every_time(monkeypatch):
    samples, real = rows(300, seed=1), rows(200, seed=2, shift=0.5)
    whole = squared_discrepancy(samples, real).item()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    monkeypatch.setattr(module, "SUBSET_SIZE", 100)
    first = kernel_distance(samples, real)
    assert (first.subset_size, first.num_subsets) == (100, 100)
    assert first.distance == pytest.approx(whole, rel=0.05)
    assert kernel_distance(samples, real) == first
    assert torch.equal(torch.get_rng_state(), state)


def test_a_smaller_set_is_the_subset():
    samples, real = rows(30, seed=1), rows(80, seed=2, shift=0.5)
    result = kernel_distance(samples, real)
    assert (result.subset_size, result.num_subsets) == (30, 100)
    assert result.distance == pytest.approx(squared_discrepancy(samples, real).item(), rel=0.1)


def test_needs_two_images_on_either_side():
    assert kernel_distance(rows(1), rows(5)) is None
    assert kernel_distance(rows(5), rows(1)) is None
    assert kernel_distance(rows(2), rows(2)) is not None

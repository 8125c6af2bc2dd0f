"""Streamed sums against numpy on all values at once, however they were split."""

import math

import numpy as np
import pytest
import torch

from ldm_lightning.metrics.accumulators import (
    FeatureMoments,
    FeatureRows,
    MeanOverImages,
    fit_gaussian,
)


@pytest.fixture
def features():
    """Hardly varying about a large mean, where raw second moments would lose their digits."""
    generator = torch.Generator().manual_seed(0)
    return 1e4 + torch.randn(37, 5, generator=generator, dtype=torch.float64) * torch.arange(1, 6)


@pytest.mark.parametrize("sizes", [(37,), (1, 36), (10, 0, 20, 7)])
def test_the_mean_counts_every_image_alike(sizes):
    values = torch.arange(37.0).square()
    metric = MeanOverImages()
    for part in values.split(list(sizes)):
        metric.update(part)
    assert metric.compute() == (values.mean().item(), 37)
    metric.reset()
    metric.update(torch.full((2,), 3.0))
    assert metric.compute() == (3.0, 2)


def test_the_mean_of_no_image_is_nan():
    metric = MeanOverImages()
    metric.update(torch.empty(0))
    mean, num_images = metric.compute()
    assert (math.isnan(mean), num_images) == (True, 0)


@pytest.mark.parametrize("sizes", [(37,), (1, 36), (10, 0, 20, 7)])
def test_streamed_moments_are_those_of_all_rows(features, sizes):
    metric = FeatureMoments(5)
    for part in features.split(list(sizes)):
        metric.update(part)
    mean, covariance, num_images = metric.compute()
    np.testing.assert_allclose(mean, features.numpy().mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(covariance, np.cov(features.numpy().T), rtol=1e-10, atol=1e-10)
    assert num_images == 37


def test_moments_of_several_processes_are_joined_about_their_common_mean(features):
    """As torchmetrics gathers them: the states of all processes, stacked."""
    parts = [FeatureMoments(5) for _ in range(3)]
    for metric, rows in zip(parts, (features[:4], features[4:5], features[5:]), strict=True):
        metric.update(rows)
    joined = FeatureMoments(5)
    for name in ("shift", "total", "outer", "count"):
        setattr(joined, name, torch.stack([getattr(metric, name) for metric in parts]))
    joined._update_count = 1
    mean, covariance, num_images = joined.compute()
    np.testing.assert_allclose(mean, features.numpy().mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(covariance, np.cov(features.numpy().T), rtol=1e-10, atol=1e-10)
    assert num_images == 37


def test_one_image_has_no_covariance(features):
    metric = FeatureMoments(5)
    metric.update(features[:1])
    assert metric.compute().covariance.isnan().all()


def test_a_gaussian_is_fitted_without_bias(features):
    fitted = fit_gaussian(features)
    np.testing.assert_allclose(fitted.covariance, np.cov(features.numpy().T), rtol=1e-10)
    assert fitted.num_images == 37


def test_rows_come_in_one_order_however_they_were_seen(features):
    orders = []
    for rows in (features, features.flip(0)):
        metric = FeatureRows(5)
        for part in rows.split(10):
            metric.update(part)
        orders.append(metric.compute())
    assert torch.equal(*orders)
    assert set(map(tuple, orders[0].tolist())) == set(map(tuple, features.tolist()))

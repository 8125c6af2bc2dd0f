"""Nearest centers and k-means against the plain formulas."""

import torch

from ldm_lightning.bottleneck import kmeans as kmeans_module
from ldm_lightning.bottleneck.kmeans import kmeans, nearest

CENTERS = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


def test_the_nearest_center_is_that_of_all_distances_however_the_table_is_cut(monkeypatch):
    vectors, centers = torch.randn(50, 6), torch.randn(7, 6)
    expected = torch.cdist(vectors, centers).argmin(dim=1)
    assert torch.equal(nearest(vectors, centers), expected)
    monkeypatch.setattr(kmeans_module, "MAX_TABLE_ELEMENTS", 30)  # four vectors at a time
    assert torch.equal(nearest(vectors, centers), expected)


def test_kmeans_finds_separate_clusters_and_repeats_itself():
    vectors = CENTERS.repeat(50, 1) + 0.1 * torch.randn(150, 2)
    found = kmeans(vectors, 3, generator=seeded())
    assert torch.equal(found, kmeans(vectors, 3, generator=seeded()))
    assert torch.cdist(found, CENTERS).min(dim=1).values.max() < 0.1
    assert nearest(CENTERS, found).unique().numel() == 3


def test_one_center_is_the_mean():
    vectors = torch.randn(20, 4)
    torch.testing.assert_close(kmeans(vectors, 1, generator=seeded())[0], vectors.mean(dim=0))


def test_a_center_that_no_vector_chose_is_drawn_anew(monkeypatch):
    """All vectors are made to choose the first center; the other becomes one of the vectors."""
    monkeypatch.setattr(
        kmeans_module, "nearest", lambda vectors, _: torch.zeros(len(vectors), dtype=torch.long)
    )
    vectors = torch.randn(20, 4)
    mean, drawn = kmeans(vectors, 2, generator=seeded())
    torch.testing.assert_close(mean, vectors.mean(dim=0))
    assert (vectors == drawn).all(dim=1).sum() == 1


def test_fewer_vectors_than_centers_are_used_more_than_once():
    found = kmeans(CENTERS, 7, generator=seeded(), num_iterations=0)
    assert found.shape == (7, 2)
    assert torch.equal(found.unique(dim=0), CENTERS.unique(dim=0))

"""Nearest codes, gradients, and the remedies against collapse (requirements E1, E5)."""

import pytest
import torch
import torch.nn.functional as F

from ldm_lightning.bottleneck.vector_quantizer import VectorQuantizer
from ldm_lightning.planning.counter import Counter


def quantizer(**changes) -> VectorQuantizer:
    torch.manual_seed(0)
    bottleneck = VectorQuantizer(**({"num_codes": 8, "latent_channels": 4} | changes))
    with torch.no_grad():
        bottleneck.embedding.weight.normal_()
    return bottleneck


def test_every_position_gets_its_nearest_code():
    bottleneck, encoded = quantizer(), torch.randn(2, 4, 3, 5)
    output = bottleneck(encoded)
    vectors = encoded.movedim(1, -1).reshape(-1, 4)
    expected = torch.cdist(vectors, bottleneck.embedding.weight).argmin(dim=1).view(2, 3, 5)
    assert torch.equal(output.indices, expected)
    torch.testing.assert_close(
        output.latents.movedim(1, -1), bottleneck.embedding(expected), rtol=1e-5, atol=1e-6
    )
    assert output.continuous is encoded


def test_quantizes_with_262144_codes_without_the_whole_table_of_distances():
    num_codes, num_vectors = 2**18, 1024
    bottleneck = quantizer(num_codes=num_codes)
    encoded = torch.randn(1, 4, 32, 32, requires_grad=True)
    counter = Counter()
    with counter:
        output = bottleneck(encoded)
        (output.terms["codebook"] + output.terms["commitment"]).sum().backward()
    table_bytes = 4 * num_codes * num_vectors
    assert counter.peak_bytes < table_bytes / 8
    some = output.indices.flatten()[:: num_vectors // 16]
    vectors = encoded.detach().movedim(1, -1).reshape(-1, 4)[:: num_vectors // 16]
    exact = torch.cdist(vectors.double(), bottleneck.embedding.weight.detach().double())
    assert torch.equal(some, exact.argmin(dim=1))


def test_codes_quantize_to_themselves():
    bottleneck = quantizer()
    codes = bottleneck.embedding.weight.detach().t().reshape(1, 4, 1, 8)
    assert bottleneck(codes).indices.flatten().tolist() == list(range(8))


def test_the_gradient_passes_straight_through():
    encoded = torch.randn(2, 4, 3, 3, requires_grad=True)
    weight = torch.randn(2, 4, 3, 3)
    (quantizer()(encoded).latents * weight).sum().backward()
    torch.testing.assert_close(encoded.grad, weight)


def test_commitment_moves_the_encoder_alone_and_codebook_the_codes_alone():
    bottleneck = quantizer()
    encoded = torch.randn(2, 4, 3, 3, requires_grad=True)
    terms = bottleneck(encoded).terms
    code_gradient, encoder_gradient = torch.autograd.grad(
        terms["commitment"].sum(),
        [bottleneck.embedding.weight, encoded],
        allow_unused=True,
        retain_graph=True,
    )
    assert code_gradient is None
    assert encoder_gradient.abs().sum() > 0
    code_gradient, encoder_gradient = torch.autograd.grad(
        terms["codebook"].sum(), [bottleneck.embedding.weight, encoded], allow_unused=True
    )
    assert encoder_gradient is None
    assert code_gradient.abs().sum() > 0


def test_terms_are_mean_squared_distances():
    bottleneck, encoded = quantizer(), torch.randn(2, 4, 3, 3)
    output = bottleneck(encoded)
    expected = F.mse_loss(encoded, output.latents, reduction="none").mean(dim=(1, 2, 3))
    torch.testing.assert_close(output.terms["codebook"], expected)
    torch.testing.assert_close(output.terms["commitment"], expected)


def test_normalized_codes_and_latents_have_unit_length():
    output = quantizer(normalize=True)(10 * torch.randn(2, 4, 3, 3))
    torch.testing.assert_close(output.latents.norm(dim=1), torch.ones(2, 3, 3))
    torch.testing.assert_close(output.continuous.norm(dim=1), torch.ones(2, 3, 3))


def test_unquantized_updates_hand_latents_on_and_then_kmeans_places_the_codes():
    bottleneck = quantizer(quantize_start_step=3).train()
    centers = 10 * F.one_hot(torch.arange(4), 4).float()
    for step in range(3):
        encoded = centers[torch.randint(4, (2, 6, 6))].movedim(-1, 1)
        encoded = encoded + 0.01 * torch.randn(encoded.shape)
        output = bottleneck(encoded)
        assert output.latents is output.continuous
        assert output.indices is None
        bottleneck.after_update(step=step, seed=0)
    assert bottleneck.is_quantizing
    output = bottleneck.eval()(centers.t().reshape(1, 4, 2, 2))
    assert (output.latents - output.continuous).abs().max() < 0.1


def test_dead_codes_restart_at_encoder_outputs_and_used_ones_stay():
    bottleneck = quantizer(restart_every_steps=2).train()
    before = bottleneck.embedding.weight.detach().clone()
    encoded = before[:2].t().reshape(1, 4, 1, 2).repeat(1, 1, 4, 1)  # only codes 0 and 1 are used
    for step in range(2):
        bottleneck(encoded)
        bottleneck.after_update(step=step, seed=0)
    after = bottleneck.embedding.weight.detach()
    assert torch.equal(after[:2], before[:2])
    distance = torch.cdist(after[2:], before[:2]).min(dim=1).values
    assert distance.max() == 0
    assert bottleneck.counts.sum() == 0


def test_no_two_dead_codes_restart_at_one_place():
    """Which of two equal codes is used would depend on rounding, and so on the batch's split."""
    bottleneck = quantizer(restart_every_steps=1).train()
    first = bottleneck.embedding.weight[0].detach().view(1, 4, 1, 1)
    vectors = first + 1e-3 * torch.randn(1, 4, 2, 4)  # eight, all nearest to the first code
    bottleneck(vectors)
    bottleneck.after_update(step=0, seed=0)
    codes = bottleneck.embedding.weight.detach()
    assert (codes - first.flatten()).norm(dim=1).max() < 0.1  # all others restarted
    assert len(codes.unique(dim=0)) == len(codes)


def test_evaluation_leaves_the_codebook_alone():
    bottleneck = quantizer(restart_every_steps=1).eval()
    before = bottleneck.embedding.weight.detach().clone()
    bottleneck(torch.randn(2, 4, 3, 3))
    bottleneck.after_update(step=0, seed=0)
    assert torch.equal(before, bottleneck.embedding.weight)


def test_a_codebook_of_one_is_refused():
    with pytest.raises(ValueError, match=r"num_codes >= 2.*got 1"):
        VectorQuantizer(num_codes=1, latent_channels=4)

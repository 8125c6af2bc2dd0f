"""Terms that a configuration adds to the reconstruction loss."""

import pytest
import torch
from torch import nn

from ldm_lightning.loss.pixel import pixel_loss
from ldm_lightning.loss.reconstruction import ReconstructionLoss
from ldm_lightning.loss.terms import LossTerm, check_term_names


class Scaled(nn.Module):
    """Mean squared error times a parameter."""

    def __init__(self, factor=3.0):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, reconstructions, images):
        return self.factor * (reconstructions - images).square().flatten(1).mean(1)


def loss_of(terms, *, pixel="l1"):
    return ReconstructionLoss(
        pixel_loss(pixel), None, perceptual_weight=0.0, reduction="mean", terms=terms
    )


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(3)
    return torch.rand(2, 5, 3, 8, 8, generator=generator).unbind()


@pytest.mark.parametrize("pixel", ["l1", "gaussian"])
def test_the_total_grows_by_weight_times_the_mean_over_images(pair, pixel):
    reconstructions, images = pair
    plain = loss_of({}, pixel=pixel)(reconstructions, reconstructions, images)
    terms = {"a": LossTerm(Scaled(), 0.5), "b": LossTerm(Scaled(2.0), 0.25)}
    both = loss_of(terms, pixel=pixel)(reconstructions, reconstructions, images)
    error = (reconstructions - images).square().mean()
    assert both.pixel == plain.pixel == plain.total
    torch.testing.assert_close(dict(both.added), {"a": 3 * error, "b": 2 * error})
    torch.testing.assert_close(both.total, plain.total + 0.5 * 3 * error + 0.25 * 2 * error)


def test_gradients_reach_the_reconstructions_and_no_weight_of_the_term(pair):
    reconstructions, images = pair
    module = Scaled()
    loss = loss_of({"own": LossTerm(module, 2.0)})
    outputs = reconstructions.clone().requires_grad_()
    with_term = torch.autograd.grad(loss(outputs, outputs, images).total, outputs)[0]
    without = torch.autograd.grad(loss_of({})(outputs, outputs, images).total, outputs)[0]
    expected = 2.0 * 3.0 * 2 * (reconstructions - images) / images.numel()
    torch.testing.assert_close(with_term - without, expected)
    assert not list(loss.parameters())
    assert not loss.state_dict()
    assert not module.factor.requires_grad


def test_device_and_type_reach_the_term(pair):
    module = Scaled()
    loss_of({"own": LossTerm(module, 1.0)}).double()
    assert module.factor.dtype == torch.float64


def test_a_term_that_averages_over_the_batch_is_refused(pair):
    class Mean(Scaled):
        def forward(self, reconstructions, images):
            return super().forward(reconstructions, images).mean()

    with pytest.raises(ValueError, match=r"Mean.*\[5\].*\[\]"):
        LossTerm(Mean(), 1.0)(*pair)
    with pytest.raises(ValueError, match="-1"):
        LossTerm(Scaled(), -1.0)


@pytest.mark.parametrize("name", ["pixel", "total", "kl", "psnr"])
def test_names_of_other_values_are_refused(name):
    with pytest.raises(ValueError, match=rf"loss\.terms\.{name}"):
        check_term_names({name: LossTerm(Scaled(), 1.0)}, {"kl", "psnr"})
    check_term_names({"own": LossTerm(Scaled(), 1.0)}, {"kl", "psnr"})

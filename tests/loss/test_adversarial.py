"""Adversarial losses, schedule and regularizers (requirements A2, A4)."""

import math

import pytest
import torch

from ldm_lightning.loss.adversarial import (
    FORMS,
    AdversarialLoss,
    AdversarialSchedule,
    LeCam,
    adaptive_weight,
    r1_penalty,
)


def test_hinge_discriminator_loss_is_zero_beyond_the_margin():
    loss = FORMS["hinge"].discriminator(torch.tensor([1.0, 3.0]), torch.tensor([-1.0, -2.0]))
    assert loss.item() == 0


def test_hinge_discriminator_loss_at_zero_logits_is_one():
    assert FORMS["hinge"].discriminator(torch.zeros(4), torch.zeros(4)).item() == 1


@pytest.mark.parametrize("form", ["vanilla", "non_saturating"])
def test_cross_entropy_at_zero_logits_is_two_bits(form):
    loss = FORMS[form].discriminator(torch.zeros(4), torch.zeros(4))
    assert loss.item() == pytest.approx(2 * math.log(2))


def test_generator_losses_are_those_of_the_literature():
    logits = torch.tensor([0.7])
    probability = torch.sigmoid(logits)
    assert FORMS["hinge"].generator(logits).item() == pytest.approx(-0.7)
    assert FORMS["vanilla"].generator(logits).item() == pytest.approx(
        torch.log(1 - probability).item(), abs=1e-6
    )
    assert FORMS["non_saturating"].generator(logits).item() == pytest.approx(
        -torch.log(probability).item(), abs=1e-6
    )


@pytest.mark.parametrize("form", FORMS)
def test_every_generator_loss_falls_as_reconstructions_look_more_real(form):
    logits = torch.tensor([-1.0], requires_grad=True)
    FORMS[form].generator(logits).backward()
    assert logits.grad.item() < 0


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match=r"adversarial_form.*'wgan'"):
        AdversarialLoss("wgan", weight=1.0, adaptive=True, schedule=AdversarialSchedule(0))


def test_discriminator_warms_up_before_the_generator_sees_it_and_the_weight_ramps():
    schedule = AdversarialSchedule(start_step=10, warmup_steps=4, ramp_steps=3)
    assert [schedule.discriminator_learns(step) for step in (5, 6, 12)] == [False, True, True]
    shares = [schedule.generator_fraction(step) for step in range(9, 15)]
    assert shares == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert schedule.fully_on_step == 13


def test_a_warm_up_longer_than_the_start_delays_the_generator():
    schedule = AdversarialSchedule(start_step=2, warmup_steps=5)
    assert schedule.discriminator_learns(0)
    assert schedule.generator_fraction(4) == 0
    assert schedule.generator_fraction(5) == 1


def test_adaptive_weight_is_the_ratio_of_norms_within_its_clamp():
    ratio = adaptive_weight(torch.full((4,), 3.0), torch.full((4,), 1.5))
    assert ratio.item() == pytest.approx(6 / (3 + 1e-4))
    assert adaptive_weight(torch.full((4,), 1e6), torch.zeros(4)).item() == 1e4


def test_r1_of_a_linear_discriminator_is_half_its_squared_weight():
    weight = torch.randn(3, 4, 4)
    images = torch.randn(5, 3, 4, 4, requires_grad=True)
    logits = (images * weight).sum(dim=(1, 2, 3))
    expected = 0.5 * weight.square().sum()
    torch.testing.assert_close(r1_penalty(logits, images), expected)


def test_the_r1_penalty_teaches_the_discriminator():
    weight = torch.randn(3, 4, 4, requires_grad=True)
    images = torch.randn(5, 3, 4, 4, requires_grad=True)
    penalty = r1_penalty((images * weight).sum(dim=(1, 2, 3)), images)
    (gradient,) = torch.autograd.grad(penalty, weight)
    torch.testing.assert_close(gradient, weight.detach())


def test_lecams_means_move_by_what_the_decay_leaves():
    lecam = LeCam(decay=0.75)
    means = []
    for logit in (4.0, 8.0):
        lecam.update([torch.full((2,), logit)], [torch.full((2,), -logit)])
        means.append((lecam.mean_real.item(), lecam.mean_fake.item()))
    assert means == [(1.0, -1.0), (2.75, -2.75)]


def test_lecam_follows_the_means_and_punishes_distance_from_the_other_side():
    lecam = LeCam(decay=0.5)
    real, fake = torch.full((4,), 2.0), torch.full((4,), -2.0)
    for _ in range(20):
        lecam.update([real], [fake])
    assert lecam.mean_real.item() == pytest.approx(2.0, abs=1e-4)
    assert lecam(real, fake).item() == pytest.approx(32.0, rel=1e-3)
    assert lecam(fake, real).item() == pytest.approx(0.0, abs=1e-6)


# Several maps of logits


def two_maps(seed, *, requires_grad=False):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(2, 1, side, side, generator=generator, requires_grad=requires_grad)
        for side in (4, 2)
    ]


@pytest.mark.parametrize("form", FORMS)
def test_losses_are_averaged_over_maps_whatever_their_size(form):
    loss = AdversarialLoss(form, 1.0, True, AdversarialSchedule(0))
    real, fake = two_maps(0), two_maps(1)
    generator = [loss.generator_loss(one) for one in fake]
    discriminator = [loss.discriminator_loss(*pair) for pair in zip(real, fake, strict=True)]
    torch.testing.assert_close(loss.generator_loss(tuple(fake)), sum(generator) / 2)
    torch.testing.assert_close(loss.discriminator_loss(real, fake), sum(discriminator) / 2)
    assert torch.equal(loss.generator_loss([fake[0]]), generator[0])


def test_the_gradient_penalty_is_that_of_the_maps_mean_sum():
    images = torch.randn(2, 3, 4, 4, requires_grad=True)
    penalty = r1_penalty([2 * images, images[:, :, :2, :2]], images)
    gradient = torch.full((3, 4, 4), 1.0)
    gradient[:, :2, :2] += 0.5
    assert penalty.item() == pytest.approx(0.5 * gradient.square().sum().item())


def test_lecam_averages_over_maps():
    lecam, real, fake = LeCam(decay=0.5), two_maps(0), two_maps(1)
    lecam.update([real, real], [fake, fake])
    mean = (real[0].mean() + real[1].mean()) / 2
    torch.testing.assert_close(lecam.mean_real, mean / 2)
    both = [lecam(*pair) for pair in zip(real, fake, strict=True)]
    torch.testing.assert_close(lecam(real, fake), sum(both) / 2)


@pytest.mark.parametrize("returned", [None, [], {"logits": torch.zeros(1)}, [torch.zeros(1), 3]])
def test_what_is_no_logits_is_refused(returned):
    with pytest.raises(ValueError, match="logits"):
        AdversarialLoss("hinge", 1.0, True, AdversarialSchedule(0)).generator_loss(returned)

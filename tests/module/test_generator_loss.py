"""The generator's loss against plain back-propagation, and what changes it."""

import copy

import lightning.pytorch as pl
import pytest
import torch

from ldm_lightning.loss.adversarial import AdversarialSchedule, hinge_generator_loss
from ldm_lightning.loss.perceptual import TinyPerceptual
from ldm_lightning.utils.random import RowDraws
from tests.module.small import Recorder, images, loader, small_module, trainer

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)


def test_the_gradient_is_that_of_the_whole_loss_written_as_one_formula(tmp_path):
    """The two-gradient shortcut equals plain back-propagation of L_rec + w L_adv + terms."""
    module = small_module(pixel="laplace")
    reference = copy.deepcopy(module)
    kept = {}

    class Keep(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if not kept:
                kept.update(
                    {
                        n: p.grad.clone()
                        for n, p in pl_module.named_parameters()
                        if p.grad is not None
                    }
                )

    run = trainer(tmp_path, max_steps=1, callbacks=[Keep()], precision="64-true")
    run.fit(module, loader(1))
    weight = float(run.callback_metrics["train/adversarial_weight"])

    reference = reference.double()
    x = next(iter(loader(1)))["image"].double()
    noise = reference._posterior_noise(x, RowDraws(reference.seed, 0, range(len(x))))
    output = reference.autoencoder(x, noise)
    terms = reference.reconstruction_loss(output.outputs, output.reconstructions, x)
    adversarial = hinge_generator_loss(reference.discriminator(output.reconstructions))
    layer = reference.autoencoder.last_layer
    norm = torch.autograd.grad(terms.total, layer, retain_graph=True)[0].norm()
    adversarial_norm = torch.autograd.grad(adversarial, layer, retain_graph=True)[0].norm()
    expected_weight = 0.5 * (norm / (adversarial_norm + 1e-4)).clamp(0, 1e4).detach()
    assert weight == pytest.approx(expected_weight.item(), rel=1e-6)
    kl = output.bottleneck.terms["kl"].mean()
    (terms.total + expected_weight * adversarial + 1e-6 * kl).backward()
    parameters = dict(reference.named_parameters())
    assert {name for name in parameters if not name.startswith("discriminator.")} == set(kept)
    for name, gradient in kept.items():
        torch.testing.assert_close(
            gradient,
            parameters[name].grad,
            rtol=1e-5,
            atol=1e-9,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_the_perceptual_gradient_reaches_the_decoder():
    module = small_module(start_step=None)
    x = images(2)
    output = module.autoencoder(x)
    distance = TinyPerceptual()(output.reconstructions, x).sum()
    (gradient,) = torch.autograd.grad(distance, module.autoencoder.last_layer)
    assert gradient.abs().sum() > 0


def test_the_perceptual_weight_changes_the_update(tmp_path):
    def after(perceptual):
        module = small_module(start_step=None, perceptual=perceptual)
        trainer(tmp_path, max_steps=1).fit(module, loader(1))
        return module.autoencoder.last_layer.detach().clone()

    assert not torch.equal(after("tiny"), after(None))


@pytest.mark.parametrize("pixel", ["gaussian", "laplace"])
def test_the_log_variance_moves(tmp_path, pixel):
    module = small_module(pixel=pixel)
    trainer(tmp_path, max_steps=3).fit(module, loader(3))
    assert module.reconstruction_loss.pixel.log_variance.item() != 0


def test_the_adversarial_weight_rises_by_equal_steps_to_the_whole(tmp_path):
    """As logged, and as felt: the update is that of a module with this constant weight."""

    def adversarial_weight(trainer, module):
        return float(trainer.callback_metrics.get("train/adversarial_weight", 0.0))

    schedule = AdversarialSchedule(start_step=1, ramp_steps=3)
    ramp = {"adaptive": False, "weight": 8.0, "schedule": schedule}
    module, recorder = small_module(adversarial=ramp), Recorder(adversarial_weight)
    trainer(tmp_path, max_steps=6, callbacks=[recorder]).fit(module, loader(6))
    assert recorder.seen == pytest.approx([0, 2, 4, 6, 8, 8])

    ends = []
    for settings in (
        {"schedule": AdversarialSchedule(start_step=0, ramp_steps=3), "weight": 8.0},
        {"schedule": AdversarialSchedule(start_step=0), "weight": 2.0},
    ):
        module = small_module(adversarial={"adaptive": False} | settings)
        trainer(tmp_path, max_steps=1).fit(module, loader(1))
        ends.append(module.autoencoder.state_dict())
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())

"""The discriminator's loss: closed forms of its regularizers, and that they change its update."""

import pytest
import torch
from torch import nn

from ldm_lightning.loss.adversarial import AdversarialLoss, AdversarialSchedule, LeCam
from ldm_lightning.module.discriminator_loss import discriminator_loss
from ldm_lightning.module.settings import Adversary
from tests.module.small import logged, small_module

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)


def test_the_loss_of_a_linear_discriminator_is_the_closed_form():
    """With D(x) = w x, R1 is |w|^2 / 2; LeCam's means of 1 and -2 are what the logits leave."""
    linear = nn.Linear(3, 1, bias=False)
    nn.init.constant_(linear.weight, 0.5)
    settings = AdversarialLoss(
        "hinge", 1.0, True, AdversarialSchedule(0), r1_weight=4.0, lecam_weight=0.1
    )
    adversary = Adversary(nn.Sequential(nn.Flatten(), linear), settings, torch.optim.Adam)
    lecam = LeCam()
    lecam.mean_real.fill_(1.0)
    lecam.mean_fake.fill_(-2.0)
    real, fake = torch.full((2, 3, 1, 1), 0.2), torch.full((2, 3, 1, 1), -0.4)  # logits 0.3, -0.6
    judged = discriminator_loss(adversary, lecam, real, fake)
    hinge, r1, far = 0.5 * (0.7 + 0.4), 0.5 * 0.75, (0.3 + 2.0) ** 2 + (1.0 + 0.6) ** 2
    assert judged.loss.item() == pytest.approx(hinge + 4.0 * r1 + 0.1 * far)
    assert {name: round(value.item(), 4) for name, value in judged.logged.items()} == {
        "loss_discriminator": pytest.approx(hinge),
        "logits_real": 0.3,
        "logits_fake": -0.6,
        "loss_r1": pytest.approx(r1),
        "loss_lecam": pytest.approx(far),
    }
    assert not any(value.requires_grad for value in judged.logged.values())


@pytest.mark.parametrize("option", ["r1_weight", "lecam_weight"])
def test_regularisers_of_the_discriminator_are_logged_and_change_its_update(tmp_path, option):
    def run(adversarial):
        module = small_module(adversarial=adversarial)
        metrics = logged(module, tmp_path, num_batches=3, max_steps=3)
        return metrics, module.discriminator.state_dict()

    plain_metrics, plain = run({})
    metrics, changed = run({option: 10.0})
    assert f"train/loss_{option.removesuffix('_weight')}" in metrics.keys() - plain_metrics.keys()
    assert any(not torch.equal(plain[name], changed[name]) for name in plain)

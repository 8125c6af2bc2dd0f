"""The cost of an update is that of the module's own, as Lightning runs it."""

import copy
import functools

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from ldm_lightning.builders.hardware import autocast
from ldm_lightning.conditioner.none import NoConditioner
from ldm_lightning.diffusion.parametrization import Epsilon
from ldm_lightning.diffusion.process import Process
from ldm_lightning.diffusion.times import TableTimes
from ldm_lightning.diffusion.weighting import Unweighted
from ldm_lightning.module.diffusion import DiffusionModule
from ldm_lightning.module.settings import Optimization
from ldm_lightning.planning.counter import Counter, empty_weights, without_memory
from ldm_lightning.planning.update_cost import (
    count_first_stage_update,
    count_forward,
    count_second_stage_update,
)
from tests.autoencoder.first_stages import frozen
from tests.denoiser.small_unet import build as small_unet
from tests.module.small import gaussian, images, loader, quantizer, small_module, trainer
from tests.sampler.small import published

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)

REGULARIZED = {"r1_weight": 1.0, "lecam_weight": 0.1}


class CountUpdate(pl.Callback):
    """Counts the second update of a run: the first makes the optimizers' states."""

    def __init__(self, *frozen):
        self.frozen = frozen
        self.counter = Counter()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1:
            states = [
                value
                for optimizer in trainer.optimizers
                for state in optimizer.state.values()
                for value in state.values()
            ]
            self.counter.know([*pl_module.parameters(), *pl_module.buffers(), *states])
            for network in self.frozen:
                self.counter.know([*network.parameters(), *network.buffers()])
            self.counter.know(batch.values())
            self.counter.__enter__()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 1:
            self.counter.__exit__(None, None, None)


@pytest.mark.parametrize(
    ("start_step", "bottleneck", "precision", "adversarial"),
    [
        (0, gaussian, "32", {}),
        (0, quantizer, "bf16", {}),
        (None, gaussian, "32", {}),
        (0, gaussian, "32", REGULARIZED),
    ],
)
def test_a_first_stages_update_without_memory_costs_what_the_real_one_does(
    tmp_path, bottleneck, precision, start_step, adversarial
):
    module = small_module(
        base_width=16, bottleneck=bottleneck(), start_step=start_step, adversarial=adversarial
    )
    count = CountUpdate(*module.reconstruction_loss.frozen_networks)
    run = trainer(
        tmp_path,
        max_steps=2,
        callbacks=[count],
        precision={"32": "32-true"}.get(precision, "bf16-mixed"),
    )
    run.fit(module, loader(2, size=32))
    module = copy.deepcopy(module)
    with without_memory():
        module.to_empty(device="cpu").train()
        cost = count_first_stage_update(
            module, torch.empty(4, 3, 32, 32), autocast=autocast("cpu", precision)
        )
    assert cost.flops == count.counter.flops
    assert cost.peak_bytes == pytest.approx(count.counter.peak_bytes, rel=0.02)


def test_r1_costs_what_its_second_derivatives_do():
    x = images(4, size=32)
    costs = [
        count_first_stage_update(
            small_module(adversarial=adversarial), x, autocast=autocast("cpu", "32")
        )
        for adversarial in ({}, {"lecam_weight": 0.1}, {"r1_weight": 1.0})
    ]
    discriminator = count_forward(lambda: small_module().discriminator(x)).flops
    assert costs[1].flops == costs[0].flops  # two sums over logits
    # the gradient at the images, and back through it to weights and activations
    added = costs[2].flops - costs[0].flops
    assert 2.5 * discriminator < added < 4.5 * discriminator


def test_a_first_stages_update_obeys_its_law():
    module, x = small_module(base_width=16), images(4, size=32)
    cost = count_first_stage_update(module, x, autocast=autocast("cpu", "32"))
    parts = {
        "A": count_forward(lambda: module.autoencoder(x)).flops,
        "V": count_forward(lambda: module.reconstruction_loss.perceptual(x, x)).flops / 2,
        "D": count_forward(lambda: module.discriminator(x)).flops,
    }
    formula = 3 * parts["A"] + 3 * parts["V"] + 8 * parts["D"]
    assert 0.9 * formula <= cost.flops <= 1.01 * formula


def test_a_count_leaves_no_gradient_and_no_hook():
    module = small_module()
    count_first_stage_update(module, images(2), autocast=autocast("cpu", "32"))
    assert all(parameter.grad is None for parameter in module.parameters())
    assert not module.autoencoder._forward_hooks
    assert not module.autoencoder._forward_pre_hooks


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory):
    return frozen(tmp_path_factory.mktemp("first"))


def second_stage(first_stage, **changes):
    """A small U-Net on latents with four channels."""
    return DiffusionModule(
        small_unet(**changes),
        NoConditioner(),
        Process(published(), Epsilon(), Unweighted(), TableTimes()),
        first_stage,
        optimization=Optimization(functools.partial(torch.optim.Adam, lr=1e-3), lambda step: 1.0),
        seed=0,
        log_every_steps=1,
        stored_config={},
        protocol={},
    ).train()


def counted_without_memory(module, batch):
    with without_memory():
        for network in (module, module.first_stage):
            empty_weights(network, device=torch.device("cpu"), dtype=torch.float32)
        batch = {name: torch.empty(value.shape) for name, value in batch.items()}
        return count_second_stage_update(module, batch, autocast=autocast("cpu", "32"))


def latents(number=2, side=32):
    return {"mean": torch.empty(number, 4, side, side)}


@pytest.mark.parametrize("entry", ["image", "mean"])
def test_a_second_stages_update_without_memory_costs_what_the_real_one_does(
    tmp_path, first_stage, entry
):
    module = second_stage(first_stage)
    shape = {"image": (3, 64, 64), "mean": (4, 16, 16)}[entry]
    rows = [{entry: torch.rand(shape)} for _ in range(8)]
    count = CountUpdate(first_stage)
    trainer(tmp_path, max_steps=2, callbacks=[count], limit_val_batches=0).fit(
        module, DataLoader(rows, batch_size=4)
    )
    cost = counted_without_memory(
        second_stage(copy.deepcopy(first_stage)), {entry: torch.empty(4, *shape)}
    )
    assert cost.flops == count.counter.flops > 0
    assert cost.peak_bytes == pytest.approx(count.counter.peak_bytes, rel=0.02)


def test_recomputation_keeps_less_and_computes_more(first_stage):
    costs = {
        gradient_checkpointing: counted_without_memory(
            second_stage(copy.deepcopy(first_stage), gradient_checkpointing=gradient_checkpointing),
            latents(),
        )
        for gradient_checkpointing in (False, True)
    }
    assert costs[True].kept_bytes < 0.5 * costs[False].kept_bytes
    assert costs[True].peak_bytes < costs[False].peak_bytes
    # a fourth forward pass, but for the end of each block, which nothing asks for
    assert 1.2 * costs[False].flops < costs[True].flops < 4 / 3 * costs[False].flops


def test_encoding_in_an_update_adds_its_operations_and_keeps_nothing(first_stage):
    module, x = second_stage(first_stage), images(2, size=32)
    with torch.no_grad():
        encoding = count_forward(lambda: first_stage.autoencoder.encode(x), first_stage)
    costs = [
        count_second_stage_update(module, batch, autocast=autocast("cpu", "32"))
        for batch in (latents(side=8), {"image": x})
    ]
    assert costs[1].flops - costs[0].flops == encoding.flops > 0
    assert costs[1].kept_bytes == costs[0].kept_bytes > 0

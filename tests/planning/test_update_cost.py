"""The cost of an update is that of the module's own, as Lightning runs it."""

import copy

import lightning.pytorch as pl
import pytest
import torch

from ldm_lightning.builders.hardware import autocast
from ldm_lightning.nn.condition import Condition
from ldm_lightning.planning.counter import Counter, without_memory
from ldm_lightning.planning.update_cost import (
    count_denoiser_update,
    count_first_stage_update,
    count_forward,
)
from tests.denoiser.small_unet import build as small_unet
from tests.module.small import gaussian, images, loader, quantizer, small_module, trainer

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)


class CountUpdate(pl.Callback):
    """Counts the second update of a run: the first makes the optimizers' states."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1:
            self.counter = Counter()
            states = [
                value
                for optimizer in trainer.optimizers
                for state in optimizer.state.values()
                for value in state.values()
            ]
            frozen = pl_module.reconstruction_loss.perceptual.network
            self.counter.know(iter([*pl_module.parameters(), *pl_module.buffers(), *states]))
            self.counter.know(iter([*frozen.parameters(), *batch.values()]))
            self.counter.__enter__()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 1:
            self.counter.__exit__(None, None, None)


@pytest.mark.parametrize(
    ("start_step", "bottleneck", "precision"),
    [(0, gaussian, "32"), (0, quantizer, "bf16"), (None, gaussian, "32")],
)
def test_a_first_stages_update_without_memory_costs_what_the_real_one_does(
    tmp_path, bottleneck, precision, start_step
):
    module = small_module(base_width=16, bottleneck=bottleneck(), start_step=start_step)
    count = CountUpdate()
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
            module.autoencoder,
            module.reconstruction_loss,
            module.discriminator,
            torch.empty(4, 3, 32, 32),
            adaptive=True,
            autocast=autocast("cpu", precision),
        )
    assert cost.flops == count.counter.flops
    assert cost.peak_bytes == pytest.approx(count.counter.peak_bytes, rel=0.02)


def test_a_first_stages_update_obeys_its_law():
    module, x = small_module(base_width=16), images(4, size=32)
    cost = count_first_stage_update(
        module.autoencoder,
        module.reconstruction_loss,
        module.discriminator,
        x,
        adaptive=True,
        autocast=autocast("cpu", "32"),
    )
    parts = {
        "A": count_forward(lambda: module.autoencoder(x)).flops,
        "V": count_forward(lambda: module.reconstruction_loss.perceptual(x, x)).flops / 2,
        "D": count_forward(lambda: module.discriminator(x)).flops,
    }
    law = 3 * parts["A"] + 3 * parts["V"] + 8 * parts["D"]
    assert 0.9 * law <= cost.flops <= 1.01 * law


def test_recomputation_keeps_less_and_computes_more():
    costs = {}
    for gradient_checkpointing in (False, True):
        with without_memory():
            unet = small_unet(gradient_checkpointing=gradient_checkpointing).train()
            costs[gradient_checkpointing] = count_denoiser_update(
                unet, torch.empty(2, 4, 32, 32), Condition(), autocast=autocast("cpu", "32")
            )
    assert costs[True].kept_bytes < 0.5 * costs[False].kept_bytes
    assert costs[True].peak_bytes < costs[False].peak_bytes
    # a fourth forward pass, but for the end of each block, which nothing asks for
    assert 1.2 * costs[False].flops < costs[True].flops < 4 / 3 * costs[False].flops


def test_encoding_in_an_update_adds_its_operations_and_keeps_nothing():
    unet, noisy = small_unet(), torch.rand(2, 4, 8, 8)
    encoder, x = torch.nn.Conv2d(3, 4, 3), torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        encoding = count_forward(lambda: encoder(x), encoder)
    costs = [
        count_denoiser_update(
            unet, noisy, Condition(), autocast=autocast("cpu", "32"), encoding=one
        )
        for one in (None, encoding)
    ]
    assert costs[1].flops - costs[0].flops == encoding.flops > 0
    assert costs[1].peak_bytes == max(costs[0].peak_bytes, encoding.peak_bytes)
    assert costs[1].kept_bytes == costs[0].kept_bytes

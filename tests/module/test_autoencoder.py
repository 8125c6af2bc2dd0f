"""The training step: what each defect of the field would break (requirement A4, C2, E1)."""

import copy
import warnings

import lightning.pytorch as pl
import pytest
import torch

from ldm_lightning.loss.adversarial import AdversarialSchedule
from ldm_lightning.planning.counter import Counter
from tests.module.small import Recorder, images, loader, logged, quantizer, small_module, trainer

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)


class GradientSpy(pl.Callback):
    """Names of the parameters that hold a gradient whenever an optimizer is about to step."""

    def __init__(self):
        self.held = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.held.append({name for name, p in pl_module.named_parameters() if p.grad is not None})


def test_the_generators_update_holds_no_gradient_of_the_discriminator_and_the_reverse(tmp_path):
    module, spy = small_module(), GradientSpy()
    trainer(tmp_path, max_steps=2, callbacks=[spy]).fit(module, loader(2))
    assert len(spy.held) == 4
    for generator, discriminator in zip(spy.held[::2], spy.held[1::2], strict=True):
        assert generator
        assert all(name.startswith("autoencoder.") for name in generator)
        assert discriminator
        assert all(name.startswith("discriminator.") for name in discriminator)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_the_discriminators_update_does_not_reach_the_autoencoder(tmp_path):
    module = small_module(learning_rate=0.0)
    before = copy.deepcopy(module.autoencoder.state_dict())
    trainer(tmp_path, max_steps=2).fit(module, loader(2))
    for name, tensor in module.autoencoder.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("start_step", [None, 0, 3])
def test_global_step_counts_generator_updates_whenever_the_discriminator_starts(
    tmp_path, start_step
):
    module = small_module(start_step=start_step)
    recorder = Recorder(lambda trainer, module: trainer.global_step)
    trainer(tmp_path, max_steps=6, callbacks=[recorder]).fit(module, loader(10))
    assert recorder.seen == [1, 2, 3, 4, 5, 6]


def test_accumulated_batches_make_the_update_of_one_large_batch(tmp_path):
    def after(accumulate_batches, batch_size):
        module = small_module(
            bottleneck=quantizer(),
            accumulate_batches=accumulate_batches,
            adversarial={"adaptive": False},
        )
        run = trainer(tmp_path, max_steps=2, precision="64-true")
        run.fit(module, loader(2 * accumulate_batches, batch_size))
        assert run.global_step == 2
        return module.state_dict()

    one, two = after(1, 8), after(2, 4)
    for name, tensor in one.items():
        torch.testing.assert_close(
            two[name], tensor, rtol=1e-7, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_training_samples_the_posterior_and_validation_takes_its_mean(tmp_path):
    seen = []

    def keep(bottleneck, inputs, output):
        mean, log_variance = inputs[0].detach().chunk(2, dim=1)
        seen.append((output.latents.detach() - mean) * torch.exp(-0.5 * log_variance))

    module = small_module(start_step=None)
    module.autoencoder.bottleneck.register_forward_hook(keep)
    run = trainer(tmp_path, max_steps=3, precision="64-true")
    run.fit(module, loader(3, batch_size=16))
    noise = torch.cat(seen)
    assert len(noise.flatten(1).unique(dim=0)) == 48
    assert abs(noise.mean().item()) < 4 * noise.numel() ** -0.5
    assert noise.var().item() == pytest.approx(1, abs=4 * (2 / noise.numel()) ** 0.5)
    seen.clear()
    run.validate(module, loader(1), verbose=False)
    assert not torch.cat(seen).any()


def test_before_its_start_the_discriminator_neither_learns_nor_is_heard(tmp_path):
    module = small_module(start_step=100)
    before = copy.deepcopy(module.discriminator.state_dict())
    metrics = logged(module, tmp_path)
    assert "train/loss_adversarial" not in metrics
    for name, tensor in module.discriminator.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_in_the_warm_up_the_discriminator_learns_and_the_generator_does_not_hear_it(tmp_path):
    schedule = AdversarialSchedule(start_step=5, warmup_steps=5)
    metrics = logged(small_module(adversarial={"schedule": schedule}), tmp_path)
    assert "train/loss_discriminator" in metrics
    assert "train/loss_adversarial" not in metrics


def test_every_term_is_logged_under_its_own_name(tmp_path):
    kl = logged(small_module(), tmp_path)
    names = {"pixel", "perceptual", "kl", "adversarial", "discriminator", "total"}
    assert {f"train/loss_{name}" for name in names} <= set(kl)
    assert {"train/grad_norm_autoencoder", "train/grad_norm_discriminator"} <= set(kl)
    vq = logged(small_module(bottleneck=quantizer()), tmp_path)
    assert {"train/loss_codebook", "train/loss_commitment"} <= set(vq)


def test_clipping_bounds_the_gradient_of_both_networks(tmp_path):
    norms = []

    class Norms(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            original = pl_module.on_before_optimizer_step

            def after(optimizer):
                original(optimizer)
                grads = [
                    p.grad
                    for g in optimizer.param_groups
                    for p in g["params"]
                    if p.grad is not None
                ]
                norms.append(torch.nn.utils.get_total_norm(grads).item())

            pl_module.on_before_optimizer_step = after

    module = small_module(clip_norm=0.01)
    trainer(tmp_path, max_steps=1, callbacks=[Norms()]).fit(module, loader(1))
    assert len(norms) == 2
    assert max(norms) <= 0.01 * (1 + 1e-4)


def test_a_loss_that_is_no_longer_finite_stops_with_update_and_term(tmp_path):
    module = small_module(start_step=None)
    with torch.no_grad():
        module.autoencoder.decoder.conv_out.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"Update 1 .*loss_pixel.*optim.learning_rate"):
        trainer(tmp_path, max_steps=1).fit(module, loader(1))


def test_a_bottleneck_term_without_a_weight_is_refused():
    module = small_module(bottleneck=quantizer())
    from ldm_lightning.module.autoencoder import AutoencoderModule

    with pytest.raises(ValueError, match=r"\['codebook', 'commitment'\].* loss.<term>_weight"):
        AutoencoderModule(
            module.autoencoder,
            module.reconstruction_loss,
            term_weights={"kl": 1.0},
            adversary=None,
            optimization=module.optimization,
            metrics=module.metrics,
            seed=0,
            log_every_steps=1,
            stored_config={},
        )


def test_frozen_networks_are_in_no_checkpoint_and_no_optimizer():
    module = small_module()
    owners = {name.split(".")[0] for name in module.state_dict()}
    assert owners == {"autoencoder", "discriminator"}
    parameters = {id(p) for p in module.parameters()}
    assert all(id(p) not in parameters for p in module.reconstruction_loss.perceptual.parameters())


def test_one_update_costs_three_autoencoder_three_perceptual_and_eight_discriminator_forwards(
    tmp_path,
):
    """FLOPs of one update are at most 1.01 x (3A + 3V + 8D)."""
    module = small_module(base_width=16)
    x = images(4, size=32)

    def flops(work):
        with Counter() as counter:
            work()
        return counter.flops

    with torch.no_grad():
        autoencoder = flops(lambda: module.autoencoder(x))
        perceptual = flops(lambda: module.reconstruction_loss.perceptual(x, x)) / 2
        discriminator = flops(lambda: module.discriminator(x))

    counted = []

    class Count(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.counter = Counter()
            self.counter.__enter__()

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.counter.__exit__(None, None, None)
            counted.append(self.counter.flops)

    trainer(tmp_path, max_steps=1, callbacks=[Count()]).fit(module, loader(1, size=32))
    floor = 3 * autoencoder + 3 * perceptual + 8 * discriminator
    assert counted[0] <= 1.01 * floor
    assert counted[0] >= 0.9 * floor


def test_validation_reports_the_same_numbers_twice_and_clamps_what_it_measures(tmp_path):
    module = small_module(pixel="gaussian", start_step=None)
    run = trainer(tmp_path, max_steps=1)

    def validate():
        run.validate(module, loader(2), verbose=False)
        return {name: float(value) for name, value in run.callback_metrics.items()}

    first, second = validate(), validate()
    assert first == second
    assert {"val/psnr", "val/ssim", "val/kl", "val/nll", "val/elbo", "latent/std"} <= set(first)
    assert first["val/elbo"] == pytest.approx(-first["val/nll"] - first["val/kl"], rel=1e-4)
    with torch.no_grad():
        module.autoencoder.decoder.conv_out.bias.fill_(50.0)
    white = validate()
    x = torch.cat([batch["image"] for batch in loader(2)])
    expected = -10 * torch.log10(((1 - (x + 1) / 2) ** 2).flatten(1).mean(1)).mean()
    assert white["val/psnr"] == pytest.approx(expected.item(), abs=0.02)


def test_no_warning_of_ours_or_lightnings_on_a_plain_run(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(tmp_path, max_steps=2).fit(small_module(), loader(2))
    texts = [str(w.message) for w in caught if "ldm_lightning" in str(w.filename)]
    assert texts == []

"""fp16 with a loss scaler, and bf16: two optimizers, unscaled gradients, exact counting.

Lightning turns 16-mixed on a CPU into bf16, so the scaler is handed over as a plugin.
"""

import copy
import functools

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from ldm_lightning.checkpoints.checkpoint import load_checkpoint
from tests.module.small import loader, quantizer, small_module, trainer

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)


class GradientNorms(pl.Callback):
    """Norm of each network's gradient as its optimizer receives it: unscaled, clipped."""

    def __init__(self):
        self.norms = []

    def on_fit_start(self, trainer, pl_module):
        original = pl_module.on_before_optimizer_step

        def after(optimizer):
            original(optimizer)
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
            kept = [gradient for gradient in gradients if gradient is not None]
            self.norms.append(torch.nn.utils.get_total_norm(kept).item())

        pl_module.on_before_optimizer_step = after


def scaled(init_scale=2.0**10):
    """fp16 on the CPU with loss scaling."""
    scaler = torch.amp.GradScaler("cpu", init_scale=init_scale)
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}


def module_with(*, fused, **options):
    adam = functools.partial(torch.optim.Adam, lr=1e-3, betas=(0.5, 0.9), fused=fused)
    return small_module(optimizer=adam, **options)


def fit(module, folder, *, max_steps=2, size=16, **options):
    norms = GradientNorms()
    run = trainer(folder, max_steps=max_steps, callbacks=[norms], **options)
    run.fit(module, loader(max_steps, size=size))
    return run, norms.norms


def metrics_of(run):
    return {name.removeprefix("train/"): float(v) for name, v in run.callback_metrics.items()}


@pytest.mark.parametrize("fused", [False, True])
def test_fp16_clips_unscaled_gradients_of_both_networks(tmp_path, fused):
    """Plain gradient descent at rate 1 moves each network by exactly the clipped norm."""
    descent = functools.partial(torch.optim.SGD, lr=1.0, fused=fused)
    module = small_module(optimizer=descent, clip_norm=0.01, reduction="mean")
    before = copy.deepcopy(module)
    run, _ = fit(module, tmp_path, max_steps=1, **scaled())
    assert run.global_step == 1
    for part in ("autoencoder", "discriminator"):
        pairs = zip(
            getattr(module, part).parameters(), getattr(before, part).parameters(), strict=True
        )
        moved = torch.nn.utils.get_total_norm([new - old for new, old in pairs])
        assert moved.item() == pytest.approx(0.01, rel=1e-3), part


@pytest.mark.parametrize(("fused", "reduction"), [(False, "sum"), (True, "mean")])
def test_fp16_finds_the_gradients_and_the_adaptive_weight_of_float32(tmp_path, fused, reduction):
    """At 64 pixels and mean reduction, unscaled gradients lie below float16's normal range."""
    seen = []
    for options in ({}, scaled(1.0 if reduction == "sum" else 2.0**16)):
        module = module_with(fused=fused, reduction=reduction)
        run, _ = fit(module, tmp_path, max_steps=1, size=64, **options)
        seen.append(metrics_of(run))
    for name in ("adversarial_weight", "grad_norm_autoencoder", "grad_norm_discriminator"):
        assert seen[1][name] == pytest.approx(seen[0][name], rel=0.02), name
    for name in ("loss_pixel", "loss_perceptual", "loss_total", "loss_discriminator"):
        assert seen[1][name] == pytest.approx(seen[0][name], rel=0.01), name


def test_an_overflow_skips_the_update_and_lowers_the_scale(tmp_path):
    module = module_with(fused=True)
    before = copy.deepcopy(module.autoencoder.state_dict())
    run, norms = fit(module, tmp_path, max_steps=1, **scaled(init_scale=2.0**60))
    assert run.global_step == 1
    assert not torch.tensor(norms[0]).isfinite()
    for name, tensor in module.autoencoder.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert run.precision_plugin.scaler.get_scale() < 2.0**60


def test_a_gradient_that_overflows_at_a_scale_below_one_ends_the_run(tmp_path):
    module = module_with(fused=True)
    module.autoencoder.decoder.conv_out.bias.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(FloatingPointError, match="grad_norm_autoencoder"):
        fit(module, tmp_path, **scaled(init_scale=0.5))


def test_the_scalers_state_is_saved_and_continues(tmp_path):
    run, _ = fit(module_with(fused=True), tmp_path, **scaled(init_scale=2.0**7))
    path = tmp_path / "scaled.ckpt"
    run.save_checkpoint(path)
    state = load_checkpoint(path)["MixedPrecision"]
    assert state["scale"] == 2.0**7
    assert state["_growth_tracker"] == 4  # two updates of two networks
    continued = trainer(tmp_path, max_steps=3, **scaled())
    continued.fit(module_with(fused=True), loader(3), ckpt_path=path)
    assert continued.global_step == 3
    assert continued.precision_plugin.scaler.get_scale() == 2.0**7


@pytest.mark.parametrize("options", [{"precision": "bf16-mixed"}, scaled()], ids=["bf16", "fp16"])
@pytest.mark.parametrize("start_step", [None, 1])
def test_global_step_counts_generator_updates_in_half_precision(tmp_path, options, start_step):
    module = small_module(
        start_step=start_step, adversarial={"r1_weight": 1.0, "lecam_weight": 0.1}
    )
    run, norms = fit(module, tmp_path, max_steps=3, **copy.deepcopy(options))
    assert run.global_step == 3
    assert len(norms) == 3 + (0 if start_step is None else 3 - start_step)


def test_bf16_and_fp16_quantize_and_stay_near_float32(tmp_path):
    seen = []
    for options in ({}, {"precision": "bf16-mixed"}, scaled()):
        run, _ = fit(small_module(bottleneck=quantizer()), tmp_path, max_steps=1, **options)
        seen.append(metrics_of(run))
    for half in seen[1:]:
        for name in ("loss_pixel", "loss_perceptual", "loss_commitment", "adversarial_weight"):
            assert half[name] == pytest.approx(seen[0][name], rel=0.05), name

"""The first generator update equals the published one, written down again from its formulas.

Rombach et al. 2022 train with two losses and two forward passes; the generator's is computed here
image by image, position by position, from the same weights, images and noise.
"""

import copy

import pytest
import torch

from ldm_lightning.builders.data import build_data
from ldm_lightning.builders.first_stage import build_first_stage_module
from ldm_lightning.builders.training import build_trainer
from ldm_lightning.loss.perceptual import TinyPerceptual
from ldm_lightning.runs.run_folder import RunFolder
from ldm_lightning.utils.random import RowDraws
from tests.module.composed import compose_tiny

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)

PUBLISHED = (
    "trainer=cpu",
    "data.batch_size=4",
    "max_steps=1",
    "optim.warmup_steps=0",
    "loss.pixel=l1",
    "loss.perceptual_weight=1.0",
    "loss.adversarial_form=hinge",
    "loss.adaptive=true",
    "loss.r1_weight=0",
    "loss.lecam_weight=0",
    "optim.clip_norm=null",
    "loss.discriminator_start_steps=0",
    "loss.discriminator_warmup_steps=0",
    "loss.discriminator_ramp_steps=0",
    "callbacks.ema=null",
)
KL = (
    "experiment=kl_f8",
    "autoencoder.linear_start=false",
    "autoencoder.patch_size=1",
    "resolution=16",
    "bottleneck.initial_log_variance=0",
    "loss.adversarial_weight=0.5",
    "loss.kl_weight=1e-6",
)
VQ = (
    "experiment=vqgan_f16",
    "autoencoder.latent_channels=8",
    "bottleneck.num_codes=16",
    "bottleneck.quantize_start_step=0",
    "bottleneck.normalize=false",
    "loss.codebook_weight=1.0",
    "loss.commitment_weight=0.25",
    "loss.adversarial_weight=0.8",
)


def first_update(words, folder, precision):
    """Our losses of the first update, and everything it started from."""
    name = words[0].removeprefix("experiment=")
    cfg = compose_tiny(
        name, *words[1:], *PUBLISHED, f"trainer.precision={precision}", folder=folder
    )
    torch.manual_seed(0)
    data = build_data(cfg)
    data.num_train_batches = 1
    trainer = build_trainer(cfg, RunFolder.create(folder))
    module = build_first_stage_module(cfg, protocol=data.protocol("val"), num_devices=1)
    module.to(torch.float64 if precision == 64 else torch.float32)
    start = copy.deepcopy(module)
    trainer.fit(module, data)
    ours = {
        name.removeprefix("train/"): float(value)
        for name, value in trainer.callback_metrics.items()
    }
    images = next(iter(data.train_dataloader()))["image"].to(start.autoencoder.last_layer.dtype)
    return ours, start, images


def gaussian_forward(start, images):
    """Reconstructions and KL, Kingma & Welling 2014, Appendix B."""
    model = start.autoencoder
    noise = start._posterior_noise(images, RowDraws(start.seed, 0, range(len(images))))
    mean, log_variance = model.quant_conv(model.encoder(images)).chunk(2, dim=1)
    latents = mean + torch.exp(log_variance / 2) * noise
    kl = 0.0
    for mu, s in zip(mean, log_variance, strict=True):
        kl = kl + (mu**2 + torch.exp(s) - 1 - s).sum() / 2
    return model.decoder(model.post_quant_conv(latents)), 1e-6 * kl / len(images)


def quantized_forward(start, images):
    """Reconstructions and codebook terms, van den Oord et al. 2017, Eq. 3."""
    model = start.autoencoder
    encoded = model.quant_conv(model.encoder(images))
    codes = model.bottleneck.embedding.weight
    quantized = torch.empty_like(encoded)
    terms, batch = 0.0, len(encoded)
    for b in range(batch):
        for i in range(encoded.shape[2]):
            for j in range(encoded.shape[3]):
                vector = encoded[b, :, i, j]
                code = codes[((codes - vector) ** 2).sum(dim=1).argmin()]
                quantized[b, :, i, j] = code.detach()
                terms = terms + ((code - vector.detach()) ** 2).sum()
                terms = terms + 0.25 * ((vector - code.detach()) ** 2).sum()
    passed_straight = encoded + (quantized - encoded).detach()
    return model.decoder(model.post_quant_conv(passed_straight)), terms / encoded.numel()


def published_generator_loss(start, images, *, forward, is_summed, discriminator_weight):
    """Loss of the generator's own pass, with its parts."""
    outputs, regularization = forward(start, images)
    distance = TinyPerceptual().to(images.dtype)(outputs, images)
    log_variance = torch.zeros((), dtype=images.dtype)  # never optimized in the published runs
    nll, num_elements = 0.0, 0
    for b in range(len(images)):
        error = (images[b] - outputs[b]).abs() + 1.0 * distance[b]
        nll = nll + (error / torch.exp(log_variance) + log_variance).sum()
        num_elements += error.numel()
    nll = nll / (len(images) if is_summed else num_elements)
    adversarial = -start.discriminator(outputs).mean()
    last_layer = start.autoencoder.decoder.conv_out.weight
    norms = [
        torch.autograd.grad(loss, last_layer, retain_graph=True)[0].square().sum().sqrt()
        for loss in (nll, adversarial)
    ]
    d = torch.clamp(norms[0] / (norms[1] + 1e-4), 0.0, 1e4).detach()
    total = nll + discriminator_weight * d * adversarial + regularization
    gradients = torch.autograd.grad(total, list(start.autoencoder.parameters()))
    real, fake = start.discriminator(images), start.discriminator(outputs.detach())
    hinge = 0.5 * (torch.relu(1 - real).mean() + torch.relu(1 + fake).mean())
    return {
        "nll": nll.item(),
        "adversarial_weight": discriminator_weight * d.item(),
        "loss_adversarial": adversarial.item(),
        "loss_total": total.item(),
        "grad_norm_autoencoder": sum(g.square().sum() for g in gradients).sqrt().item(),
        "loss_discriminator": hinge.item(),
    }


@pytest.mark.parametrize(
    ("family", "precision", "tolerance"),
    [("kl", 64, 1e-10), ("vq", 64, 1e-10), ("kl", 32, 1e-6)],
)
def test_the_first_update_is_the_published_one(tmp_path, family, precision, tolerance):
    is_kl = family == "kl"
    ours, start, images = first_update(KL if is_kl else VQ, tmp_path, precision)
    elements = images[0].numel() if is_kl else 1
    ours["nll"] = ours["loss_pixel"] + elements * ours["loss_perceptual"]
    published = published_generator_loss(
        start,
        images,
        forward=gaussian_forward if is_kl else quantized_forward,
        is_summed=is_kl,
        discriminator_weight=0.5 if is_kl else 0.8,
    )
    assert {name: ours[name] for name in published} == pytest.approx(published, rel=tolerance)

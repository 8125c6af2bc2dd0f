"""The study of losses: its noisy copies have the PSNR of its blurred ones."""

import pytest
import torch

from experiments.loss_ablation.copies import measure_copies, noisy_copies
from experiments.loss_ablation.study import VARIANTS, _shapes, _variant
from ldm_lightning.metrics.pixels import peak_signal_to_noise_ratio
from ldm_lightning.utils.image import to_uint8


def test_each_image_gets_the_noise_that_brings_it_to_its_psnr():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 32, 32, generator=generator) * 2 - 1
    noise = torch.randn(images.shape, generator=generator)
    psnr = torch.tensor([40.0, 32.0, 25.0, 15.0], dtype=torch.float64)
    copies = noisy_copies(images, noise, psnr)
    measured = peak_signal_to_noise_ratio(to_uint8(copies), to_uint8(images))
    assert measured.tolist() == pytest.approx(psnr.tolist(), abs=0.02)


def test_blurred_and_noisy_copies_differ_in_all_but_psnr(monkeypatch):
    monkeypatch.setattr("experiments.loss_ablation.copies.SIGMAS", (0.8,))
    blurred, noisy = measure_copies(_shapes())
    assert float(blurred["psnr"]) == pytest.approx(float(noisy["psnr"]), abs=0.02)
    assert float(blurred["high_frequency_deficit"]) > 0.4
    assert float(noisy["high_frequency_deficit"]) < 0.05
    assert blurred["num_images"] == noisy["num_images"] == "64"


def test_a_run_is_recognised_as_its_variant():
    named = []
    for pixel, weight, parts in (
        ("l2", 0, {"autoencoder": 1}),
        ("l1", 0, {"autoencoder": 1}),
        ("l1", 0.1, {"autoencoder": 1}),
        ("l1", 0.1, {"autoencoder": 1, "discriminator": 1}),
    ):
        loss = {"pixel": pixel, "perceptual_weight": weight}
        named.append(_variant({"config": {"loss": loss}, "parameters": parts}))
    assert named == list(VARIANTS)

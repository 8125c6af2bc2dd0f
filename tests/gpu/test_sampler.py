"""Samplers make the same images on the device as on the CPU."""

import functools

import pytest
import torch

from ldm_lightning.sampler.ddim import ddim
from ldm_lightning.sampler.ddpm import ddpm
from ldm_lightning.sampler.dpm_solver import dpm_solver
from ldm_lightning.sampler.heun import heun
from ldm_lightning.sampler.images import ImageSampler
from ldm_lightning.sampler.sampler import Sampler
from tests.autoencoder.first_stages import frozen
from tests.denoiser.small_unet import randomized
from tests.gpu.updates import class_conditioner
from tests.sampler.small import PROCESSES

pytestmark = pytest.mark.gpu

SOLVERS = {
    "ddim": functools.partial(ddim, eta=0.0),
    "ddpm": ddpm,
    "dpm_solver": dpm_solver,
    "heun": heun,
}


@pytest.mark.parametrize("solver", SOLVERS)
def test_images_are_those_of_the_cpu(tmp_path, device, solver):
    pictures = []
    for where in (torch.device("cpu"), device):
        sampler = ImageSampler(
            Sampler(SOLVERS[solver], num_steps=5, guidance_scale=2.0),
            PROCESSES["eps"],
            randomized().eval().to(where),
            class_conditioner().eval().to(where),
            frozen(tmp_path).to(where),
            latent_size=(8, 8),
            seed=3,
            classes=(0, 1, 2, 3, 4),
        )
        pictures.append(sampler.images([0, 5, 6], labels=[4, 0, 1]).cpu())
    assert pictures[0].std() > 0.01
    torch.testing.assert_close(pictures[1], pictures[0], rtol=1e-2, atol=2e-3)

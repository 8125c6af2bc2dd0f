"""A small nonlinear network, and processes of every kind."""

import torch

from ldm_lightning.diffusion.edm import EdmSchedule
from ldm_lightning.diffusion.flow import FlowSchedule
from ldm_lightning.diffusion.parametrization import Clean, Edm, Epsilon, Flow, Velocity
from ldm_lightning.diffusion.process import Process
from ldm_lightning.diffusion.schedule import cosine_schedule, sqrt_linear_schedule
from ldm_lightning.diffusion.times import UniformTimes
from ldm_lightning.diffusion.weighting import Unweighted
from ldm_lightning.sampler.steps import Denoiser

SHAPE = (4, 3, 2, 2)


class Estimate(Denoiser):
    """A function of noisy latents and time as a denoiser."""

    def __init__(self, clean):
        self.clean = clean

    def __call__(self, noisy, time):
        return self.clean(noisy, time)


def published(**options):
    return sqrt_linear_schedule(num_steps=1000, beta_start=0.0015, beta_end=0.0195, **options)


def process_of(schedule, parametrization):
    return Process(schedule, parametrization, Unweighted(), UniformTimes())


PROCESSES = {
    "eps": process_of(cosine_schedule(num_steps=1000), Epsilon()),
    "x0": process_of(published(zero_terminal_snr=True), Clean()),
    "v": process_of(published(zero_terminal_snr=True), Velocity()),
    "edm": process_of(EdmSchedule(), Edm()),
    "flow": process_of(FlowSchedule(), Flow()),
    "flow, shifted": process_of(FlowSchedule(shift=3.0), Flow()),
}


def draw_noise(seed=0, shape=SHAPE):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def sequential_noise(seed=1, shape=SHAPE):
    """Noise of one step after another from one generator, as diffusers draws it."""
    generator = torch.Generator().manual_seed(seed)
    return lambda step: torch.randn(shape, generator=generator, dtype=torch.float64)


def network(scaled_noisy, network_time, condition):
    """Mixes channels and depends on the time; every row on its own."""
    mixing = torch.tensor(
        [[0.6, -0.3, 0.1], [0.2, 0.5, 0.4], [-0.1, 0.3, 0.7]], dtype=scaled_noisy.dtype
    )
    phase = (network_time.to(scaled_noisy.dtype) / 300)[:, None, None, None]
    mixed = torch.einsum("dc,bchw->bdhw", mixing, scaled_noisy)
    output = torch.tanh(mixed + 0.2 * phase.sin()) + 0.1 * phase.cos()
    return output if condition.vector is None else output + condition.vector[:, :, None, None]

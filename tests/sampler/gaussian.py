"""Gaussian data of known mean and covariance, whose optimal denoiser is known in closed form."""

import torch

from ldm_lightning.diffusion.edm import EdmSchedule
from ldm_lightning.diffusion.flow import FlowSchedule

MEAN = torch.tensor([0.4, -0.3, 0.1], dtype=torch.float64)

# Standard deviations 1.3, 0.8 and 0.4 along axes that are turned against the channels.
_AXES = torch.linalg.qr(
    torch.tensor([[1.0, 2.0, 0.5], [0.3, -1.0, 2.0], [1.5, 0.2, 1.0]], dtype=torch.float64)
).Q
COVARIANCE = _AXES @ torch.diag(torch.tensor([1.3, 0.8, 0.4]).double().square()) @ _AXES.T


def optimal_estimate(noisy, alpha, sigma):
    """E[clean | noisy] for noisy [B, 3, 1, 1] at one noise level.

    mean + alpha C (alpha^2 C + sigma^2 I)^-1 (noisy - alpha mean)
    """
    identity = torch.eye(3, dtype=torch.float64)
    gain = alpha * COVARIANCE @ torch.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * identity)
    offset = noisy.flatten(1) - alpha * MEAN
    return (MEAN + offset @ gain.T)[:, :, None, None]


def optimal_network(process):
    """The network that returns the optimal estimate in the process's parametrization.

    It reads the noise level from what the network sees of the time, as a trained one would.
    """

    def network(scaled_noisy, network_time, condition):
        alpha, sigma = _noise_level(process.schedule, network_time[0])
        scales = process.parametrization.preconditioning(alpha, sigma)
        noisy = scaled_noisy / scales.input_scale
        clean = optimal_estimate(noisy, alpha, sigma)
        return (clean - scales.skip * noisy) / scales.output_scale

    return network


def _noise_level(schedule, network_time):
    if isinstance(schedule, EdmSchedule):
        return torch.ones_like(network_time), (4 * network_time).exp()
    if isinstance(schedule, FlowSchedule):
        return 1 - network_time / 1000, network_time / 1000
    return schedule.noise_level((network_time + 1) / 1000)


def propagated_moments(sample, num_steps):
    """Mean and covariance of an affine sampler's result, without any sampling.

    The optimal denoiser is affine, so the result is b + M noise + sum over steps of M_i noise_i:
    the response to zero is b, the responses to unit vectors are the columns.

    Args:
        sample: (noise [B, 3, 1, 1], step_noise) -> latents [B, 3, 1, 1].
        num_steps: Of the sampler.

    Returns:
        Mean [3] and covariance [3, 3].
    """
    num_rows = 1 + 3 * (1 + num_steps)
    unit = torch.eye(num_rows, dtype=torch.float64)[:, 1:].reshape(num_rows, 1 + num_steps, 3)
    responses = sample(
        unit[:, 0, :, None, None], lambda step: unit[:, 1 + step, :, None, None]
    ).flatten(1)
    columns = responses[1:] - responses[0]
    return responses[0], columns.T @ columns


def standard_errors(num_samples):
    """Monte-Carlo standard errors of the mean [3] and the covariance [3, 3] of so many samples."""
    variance = COVARIANCE.diagonal()
    of_covariance = (variance[:, None] * variance + COVARIANCE**2) / num_samples
    return (variance / num_samples).sqrt(), of_covariance.sqrt()

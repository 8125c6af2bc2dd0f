"""Predictions and clean estimates by the scales of a parametrization, as its papers write them."""


def target_of(parametrization, clean, noise, alpha, sigma):
    """What the network should return; ``alpha`` and ``sigma`` broadcast to the latents."""
    scales = parametrization.preconditioning(alpha, sigma)
    return scales.clean_weight * clean + scales.noise_weight * noise


def clean_of(parametrization, output, noisy, alpha, sigma):
    """Clean estimate from the network's output."""
    scales = parametrization.preconditioning(alpha, sigma)
    return scales.skip * noisy + scales.output_scale * output

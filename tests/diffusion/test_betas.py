"""Tables of betas against those of diffusers (which are float32)."""

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

from ldm_lightning.diffusion.betas import cosine_betas, sqrt_linear_betas, zero_terminal_snr


@pytest.mark.parametrize(("start", "end"), [(0.0015, 0.0195), (0.00085, 0.012)])
def test_sqrt_linear_betas_equal_the_published_ones(start, end):
    reference = DDPMScheduler(beta_schedule="scaled_linear", beta_start=start, beta_end=end).betas
    betas = sqrt_linear_betas(1000, start, end)
    torch.testing.assert_close(betas, reference.double(), rtol=1e-6, atol=0)
    assert betas[0].item() == pytest.approx(start, rel=1e-14)
    assert betas[-1].item() == pytest.approx(end, rel=1e-14)


def test_cosine_betas_equal_the_published_ones():
    reference = DDPMScheduler(beta_schedule="squaredcos_cap_v2").betas
    torch.testing.assert_close(cosine_betas(1000), reference.double(), rtol=1e-7, atol=0)


def test_zero_terminal_snr_equals_the_published_rescaling():
    betas = sqrt_linear_betas(1000, 0.00085, 0.012)
    rescaled = zero_terminal_snr(betas)
    torch.testing.assert_close(rescaled, rescale_zero_terminal_snr(betas), rtol=1e-12, atol=0)
    assert (1 - rescaled).cumprod(dim=0)[-1].item() == 0
    assert rescaled[0].item() == pytest.approx(betas[0].item(), rel=1e-10)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: sqrt_linear_betas(0, 0.1, 0.2), r"num_steps.*\b0\b"),
        (lambda: cosine_betas(-1), "num_steps.*-1"),
        (lambda: sqrt_linear_betas(10, 0.2, 0.1), r"beta_start <= beta_end.*0\.2\b.*0\.1\b"),
        (lambda: zero_terminal_snr(torch.tensor([0.1])), r"\b2 steps.*\b1\b"),
    ],
)
def test_refuses_tables_that_are_none(make, match):
    with pytest.raises(ValueError, match=match):
        make()

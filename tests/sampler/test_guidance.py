"""Guidance: one batched call equals two, and outside its interval half the rows are spared."""

import pytest
import torch

from ldm_lightning.nn.condition import Condition
from ldm_lightning.sampler.grid import time_grid
from ldm_lightning.sampler.guidance import Guidance, GuidedDenoiser
from ldm_lightning.sampler.steps import Step
from tests.sampler.small import PROCESSES, draw_noise, network

CONDITION = Condition(vector=draw_noise(seed=7, shape=(4, 3)))
NULL = Condition(vector=torch.zeros(4, 3, dtype=torch.float64))

every_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())


class Counting:
    """The small network, which notes the number of rows of each call."""

    def __init__(self):
        self.rows = []

    def __call__(self, scaled_noisy, network_time, condition):
        assert network_time.shape == condition.vector.shape[:1] == scaled_noisy.shape[:1]
        self.rows.append(len(scaled_noisy))
        return network(scaled_noisy, network_time, condition)


def denoiser(process, times, guidance, *, null=NULL, counting=None):
    return GuidedDenoiser(
        process,
        counting or network,
        times=times,
        condition=CONDITION,
        null_condition=null,
        guidance=guidance,
        latents=draw_noise(),
    )


@every_process
def test_batched_guidance_extrapolates_between_two_separate_estimates(process):
    times, noisy, scale = time_grid(process.schedule, 6), draw_noise(), 2.5
    guided = denoiser(process, times, Guidance(scale))
    for time in times[:-1]:
        each = time.expand(4)
        without = process.denoise(network, noisy, each, NULL)
        conditional = process.denoise(network, noisy, each, CONDITION)
        torch.testing.assert_close(
            guided(noisy, time.item()),
            without + scale * (conditional - without),
            rtol=1e-10,
            atol=1e-10,
        )


@every_process
def test_scale_one_is_the_conditional_estimate_in_half_the_rows(process):
    times, noisy, counting = time_grid(process.schedule, 6), draw_noise(), Counting()
    plain = denoiser(process, times, Guidance(1.0), counting=counting)
    for time in times[:-1]:
        conditional = process.denoise(network, noisy, time.expand(4), CONDITION)
        torch.testing.assert_close(plain(noisy, time.item()), conditional, rtol=1e-12, atol=1e-12)
    assert counting.rows == [4] * 6


@every_process
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_a_step_without_the_estimate_is_the_step_with_it(process, scale):
    times, noisy, step = time_grid(process.schedule, 6), draw_noise(), Step(0.8, 0.3)
    guided = denoiser(process, times, Guidance(scale))
    for time in times[:-1].tolist():
        expected = step.apply(noisy, guided(noisy, time))
        torch.testing.assert_close(guided.walk(step, noisy, time), expected, rtol=1e-9, atol=1e-9)


def test_scale_zero_is_the_unconditional_estimate():
    process, noisy = PROCESSES["v"], draw_noise()
    times = time_grid(process.schedule, 3)
    guided = denoiser(process, times, Guidance(0.0))
    without = process.denoise(network, noisy, times[1].expand(4), NULL)
    torch.testing.assert_close(guided(noisy, times[1].item()), without)


@every_process
def test_outside_the_interval_only_the_conditional_half_is_called(process):
    times, noisy, counting = time_grid(process.schedule, 10), draw_noise(), Counting()
    low, high = times[7].item(), times[3].item()
    guided = denoiser(process, times, Guidance(3.0, (low, high)), counting=counting)
    always = denoiser(process, times, Guidance(3.0))
    never = denoiser(process, times, Guidance(1.0))
    for index, time in enumerate(times[:-1].tolist()):
        expected = always if 3 <= index <= 7 else never
        assert torch.equal(guided(noisy, time), expected(noisy, time))
    assert counting.rows == [4] * 3 + [8] * 5 + [4] * 2


def test_guidance_without_a_null_condition_is_refused():
    process = PROCESSES["flow"]
    times = time_grid(process.schedule, 3)
    with pytest.raises(ValueError, match=r"guidance_scale=2\.0\b.*guidance_scale=1"):
        denoiser(process, times, Guidance(2.0), null=None)
    denoiser(process, times, Guidance(1.0), null=None)


@pytest.mark.parametrize("interval", [(0.5, 0.5), (0.7, 0.2), (-0.1, 1.0), (0.0, 1.1), (0.3,)])
def test_refuses_intervals_that_are_none(interval):
    with pytest.raises(ValueError, match="0 <= lowest < highest <= 1, got"):
        Guidance(2.0, interval)


def test_half_precise_outputs_are_extrapolated_in_the_type_of_the_latents():
    process, noisy = PROCESSES["v"], draw_noise().float()
    times = time_grid(process.schedule, 3)

    def halved(scaled_noisy, network_time, condition):
        return network(scaled_noisy, network_time, condition).bfloat16()

    def widened(scaled_noisy, network_time, condition):
        return halved(scaled_noisy, network_time, condition).float()

    estimates = [
        GuidedDenoiser(
            process,
            each,
            times=times,
            condition=CONDITION,
            null_condition=NULL,
            guidance=Guidance(7.5),
            latents=noisy,
        )(noisy, times[1].item())
        for each in (halved, widened)
    ]
    assert torch.equal(*estimates)

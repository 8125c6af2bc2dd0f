"""The process: losses and gradients in closed form, types, and refusals."""

import pytest
import torch

from ldm_lightning.diffusion.edm import EdmSchedule
from ldm_lightning.diffusion.flow import FlowSchedule
from ldm_lightning.diffusion.parametrization import Clean, Edm, Epsilon, Flow, Velocity
from ldm_lightning.diffusion.process import Process
from ldm_lightning.diffusion.schedule import sqrt_linear_schedule
from ldm_lightning.diffusion.times import (
    LogitNormalTimes,
    LogNormalTimes,
    TableTimes,
    UniformTimes,
)
from ldm_lightning.diffusion.weighting import EdmWeighting, MinSnr, Unweighted
from ldm_lightning.nn.condition import Condition
from tests.diffusion.predictions import target_of


def table(**options):
    return sqrt_linear_schedule(num_steps=1000, beta_start=0.0015, beta_end=0.0195, **options)


def process(parametrization=None, *, schedule=None, weighting=None, times=None, distance="l2"):
    return Process(
        schedule or table(),
        parametrization or Epsilon(),
        weighting or Unweighted(),
        times or UniformTimes(),
        distance,
    )


PROCESSES = {
    "eps": process(times=TableTimes(), weighting=MinSnr()),
    "x0": process(Clean(), times=TableTimes()),
    "v": process(Velocity(), schedule=table(zero_terminal_snr=True), times=TableTimes()),
    "edm": process(
        Edm(), schedule=EdmSchedule(), weighting=EdmWeighting(), times=LogNormalTimes(-0.5, 1.2)
    ),
    "flow": process(Flow(), schedule=FlowSchedule(), times=LogitNormalTimes()),
}
every_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())


def batch(size=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, size, 3, 2, 2, generator=generator, dtype=torch.float64)
    return clean.to(dtype), noise.to(dtype), torch.linspace(0.1, 1.0, size, dtype=torch.float64)


def test_noising_is_the_formula():
    (clean, noise, time), schedule = batch(), table()
    expected = torch.stack(
        [
            schedule.noise_level(t).alpha * c + schedule.noise_level(t).sigma * n
            for c, n, t in zip(clean, noise, time, strict=True)
        ]
    )
    torch.testing.assert_close(process().add_noise(clean, noise, time), expected)


@every_process
def test_a_network_that_predicts_the_target_has_no_loss_and_denoises_exactly(process):
    clean, noise, time = batch()
    noisy = process.add_noise(clean, noise, time)
    level = process.schedule.noise_level(time[:, None, None, None])
    target = target_of(process.parametrization, clean, noise, *level)

    def network(scaled_noisy, network_time, condition):
        assert network_time.shape == (5,)
        scale = process.parametrization.preconditioning(*level).input_scale
        torch.testing.assert_close(scaled_noisy, scale * noisy)
        return target

    estimate = process.denoise(network, noisy, time, Condition())
    torch.testing.assert_close(estimate, clean, rtol=1e-8, atol=1e-8)
    assert process.loss(network, clean, noise, time, Condition()).abs().max() < 1e-20


@pytest.mark.parametrize("distance", ["l1", "l2"])
@every_process
def test_loss_is_weight_times_mean_distance_per_sample(process, distance):
    process = Process(
        process.schedule,
        process.parametrization,
        process.weighting,
        process.training_times,
        distance,
    )
    clean, noise, time = batch()
    level = process.schedule.noise_level(time)
    target = target_of(
        process.parametrization, clean, noise, *(value[:, None, None, None] for value in level)
    )
    error = 0.3 - target
    expected = (error.abs() if distance == "l1" else error**2).mean(dim=(1, 2, 3))

    def network(scaled_noisy, network_time, condition):
        return torch.full_like(scaled_noisy, 0.3)

    arguments = (network, clean, noise, time, Condition())
    scale = process.preconditioning(time).output_scale
    weight = process.weighting(*level, scale)
    torch.testing.assert_close(process.loss(*arguments), weight * expected)


@every_process
def test_gradient_of_a_linear_network_is_the_closed_form(process):
    clean, noise, time = batch()
    gain = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    process.loss(lambda x, t, c: gain * x, clean, noise, time, Condition()).sum().backward()
    level = [value[:, None, None, None] for value in process.schedule.noise_level(time)]
    scales = process.parametrization.preconditioning(*level)
    seen = scales.input_scale * (level[0] * clean + level[1] * noise)
    target = target_of(process.parametrization, clean, noise, *level)
    weight = process.weighting(*level, scales.output_scale)
    # d/dg of weight * mean (g * seen - target)^2
    slope = (weight * 2 * (0.7 * seen - target) * seen).mean(dim=(1, 2, 3)).sum()
    torch.testing.assert_close(gain.grad, slope)


@every_process
def test_min_snr_on_the_clean_estimate_is_one_loss_in_every_parametrization(process):
    """The same estimate costs min(SNR, gamma) times its squared error, whatever is predicted."""
    clean, noise, time = batch()
    time = time.clamp(max=0.9)
    process = Process(
        process.schedule, process.parametrization, MinSnr(), process.training_times, "l2"
    )
    alpha, sigma = process.schedule.noise_level(time)
    estimate = 0.8 * clean + 0.1
    noisy = process.add_noise(clean, noise, time)
    wide = [value[:, None, None, None] for value in (alpha, sigma)]
    output = target_of(
        process.parametrization, estimate, (noisy - wide[0] * estimate) / wide[1], *wide
    )
    loss = process.loss(lambda x, t, c: output, clean, noise, time, Condition())
    expected = (alpha / sigma).square().clamp(max=5) * (estimate - clean).square().mean((1, 2, 3))
    torch.testing.assert_close(loss, expected, rtol=1e-8, atol=0)


@every_process
def test_times_are_in_range_for_every_uniform_and_both_ends(process):
    uniform = torch.cat([torch.zeros(1), torch.rand(1000), torch.ones(1)])
    times = process.times(uniform)
    assert times.dtype == torch.float64
    assert ((times > 0) & (times <= 1)).all()
    assert process.schedule.network_time(times).isfinite().all()
    assert (times[uniform.argsort()].diff() >= 0).all()


@every_process
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_latents_keep_their_type_and_arithmetic_is_float32_at_least(process, dtype):
    clean, noise, time = batch(dtype=dtype)
    seen = []

    def network(scaled_noisy, network_time, condition):
        seen.append((scaled_noisy.dtype, network_time.dtype))
        return scaled_noisy.tanh()

    assert process.add_noise(clean, noise, time).dtype == dtype
    assert process.denoise(network, clean, time, Condition()).dtype == dtype
    assert process.loss(network, clean, noise, time, Condition()).dtype == torch.float32
    assert set(seen) == {(torch.float32, torch.float32)}


@every_process
def test_under_autocast_only_the_network_is_half_precise(process):
    clean, noise, time = batch(dtype=torch.float32)
    linear = torch.nn.Linear(2, 2)
    outputs = []

    def network(scaled_noisy, network_time, condition):
        outputs.append(linear(scaled_noisy))
        return outputs[-1]

    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = process.loss(network, clean, noise, time, Condition())
    assert outputs[0].dtype == torch.bfloat16
    assert inside.dtype == torch.float32
    replay = process.loss(lambda x, t, c: outputs[0].float(), clean, noise, time, Condition())
    assert torch.equal(inside, replay)


@every_process
def test_a_sample_does_not_depend_on_its_batch(process):
    clean, noise, time = batch()

    def network(scaled_noisy, network_time, condition):
        return scaled_noisy.tanh() + network_time[:, None, None, None].sin()

    whole = process.loss(network, clean, noise, time, Condition())
    for row in range(5):
        part = slice(row, row + 1)
        alone = process.loss(network, clean[part], noise[part], time[part], Condition())
        torch.testing.assert_close(alone, whole[part], rtol=1e-12, atol=0)


@every_process
def test_everything_is_computed_where_the_latents_are(process):
    """The meta device stands for a GPU: an operand that was left on the CPU is an error."""
    clean = torch.empty(5, 3, 2, 2, device="meta")
    time = process.times(torch.empty(5, device="meta"))
    linear = torch.nn.Linear(2, 2, device="meta")

    def network(scaled_noisy, network_time, condition):
        return linear(scaled_noisy + network_time[:, None, None, None])

    noisy = process.add_noise(clean, clean, time)
    results = [
        time,
        noisy,
        process.denoise(network, noisy, time, Condition()),
        process.loss(network, clean, clean, time, Condition()),
        process.schedule.time_at(time),
    ]
    assert all(result.device.type == "meta" for result in results)


@pytest.mark.parametrize("schedule", [table(zero_terminal_snr=True), FlowSchedule()])
def test_refuses_to_predict_noise_where_no_signal_is_left(schedule):
    with pytest.raises(ValueError, match="SNR.*Epsilon"):
        process(Epsilon(), schedule=schedule)


def test_refuses_table_times_without_a_table():
    with pytest.raises(ValueError, match="TableTimes.*FlowSchedule"):
        process(Flow(), schedule=FlowSchedule(), times=TableTimes())


def test_refuses_unknown_distances():
    with pytest.raises(ValueError, match=r"\('l1', 'l2'\).*'huber'"):
        process(distance="huber")


def test_refuses_times_that_are_not_one_a_sample():
    clean, noise, time = batch()
    for call in (
        lambda: process().add_noise(clean, noise, time[:1]),
        lambda: process().denoise(lambda x, t, c: x, clean, time[0], Condition()),
        lambda: process().loss(lambda x, t, c: x, clean, noise, time[:, None], Condition()),
    ):
        with pytest.raises(ValueError, match=r"\btime\b.*\[5\]"):
            call()


def test_refuses_a_network_that_returns_another_shape():
    clean, noise, time = batch()
    with pytest.raises(ValueError, match=r"\[5, 3, 2, 2\].*\[5, 1, 2, 2\].*out_channels"):
        process().loss(lambda x, t, c: x[:, :1], clean, noise, time, Condition())

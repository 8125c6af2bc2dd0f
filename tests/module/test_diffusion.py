"""The second stage's module against closed forms, with a denoiser of one weight.

The denoiser keeps what it is called with. It predicts noise as ``weight * noisy``, so that noise,
loss, gradient and update follow from what it saw, whatever the random numbers are.
"""

import functools
import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from ldm_lightning.autoencoder.normalizer import LatentNormalizer
from ldm_lightning.callbacks.ema import Ema
from ldm_lightning.conditioner.class_label import ClassConditioner
from ldm_lightning.diffusion.parametrization import Epsilon
from ldm_lightning.diffusion.process import Process
from ldm_lightning.diffusion.times import TableTimes
from ldm_lightning.diffusion.weighting import Unweighted
from ldm_lightning.module.diffusion import NUM_NOISE_LEVELS, DiffusionModule
from ldm_lightning.module.settings import Optimization
from tests.autoencoder.first_stages import frozen
from tests.module.small import trainer
from tests.sampler.small import published

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)

SHAPE = (4, 4, 4)
NUM_CLASSES = 5
RATE = 0.125
SCHEDULE = published()
SHIFT, SCALE = 0.5, 2.0  # of the normalizer


@dataclass(frozen=True)
class Call:
    """What the denoiser was called with, and its weight at the time."""

    noisy: torch.Tensor
    time: torch.Tensor
    vector: torch.Tensor
    weight: float


class Denoiser(nn.Module):
    """Predicts ``weight * noisy`` and keeps its calls."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.25))
        self.calls = []

    def forward(self, noisy, time, condition):
        kept = (noisy.detach().clone(), time.clone(), condition.vector.detach().clone())
        self.calls.append(Call(*kept, self.weight.item()))
        return self.weight * noisy


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory):
    stage = frozen(tmp_path_factory.mktemp("first"))
    channels = torch.ones(SHAPE[0])
    stage.set_normalizer(LatentNormalizer(SHIFT * channels, SCALE * channels))
    return stage


@pytest.fixture
def module_with(first_stage):
    """Makes a module of the denoiser above."""

    def make(*, dropout=0.0, seed=0, accumulate_batches=1, clip_norm=None, schedule=None):
        torch.manual_seed(0)
        return DiffusionModule(
            Denoiser(),
            ClassConditioner(num_classes=NUM_CLASSES, width=3, dropout=dropout),
            Process(SCHEDULE, Epsilon(), Unweighted(), TableTimes()),
            first_stage,
            optimization=Optimization(
                functools.partial(torch.optim.SGD, lr=RATE),
                schedule or (lambda step: 1.0),
                accumulate_batches=accumulate_batches,
                clip_norm=clip_norm,
            ),
            seed=seed,
            log_every_steps=1,
            stored_config={},
            protocol={},
        )

    return make


def rows(number, *, with_variance=False):
    """A latent cache in memory."""
    generator = torch.Generator().manual_seed(4)
    return [
        {
            "mean": torch.randn(SHAPE, generator=generator),
            "label": index % NUM_CLASSES,
            "key": f"image {index}",
        }
        | ({"variance": torch.full(SHAPE, 0.09)} if with_variance else {})
        for index in range(number)
    ]


def fit(module, folder, data, *, batch_size, max_steps, **options):
    run = trainer(folder, max_steps=max_steps, precision="64-true", **options)
    run.fit(module, DataLoader(data, batch_size=batch_size))
    return module.denoiser.calls


def validate(module, folder, data, *, batch_size=16):
    run = trainer(folder, max_steps=1, precision="64-true")
    run.validate(module, DataLoader(data, batch_size=batch_size), verbose=False)
    return module.denoiser.calls


def joined(calls, name):
    return torch.cat([getattr(call, name) for call in calls])


def normalized(data):
    means = torch.stack([row["mean"] for row in data]).double()
    return (means - SHIFT) * SCALE


def levels_of(calls):
    """Signal and noise of every row, [B, 1, 1, 1], by the time that the network was told."""
    alpha, sigma = SCHEDULE.noise_level((joined(calls, "time") + 1) / 1000)
    return alpha[:, None, None, None], sigma[:, None, None, None]


def noise_of(calls, latents):
    """The noise that made latents noisy."""
    alpha, sigma = levels_of(calls)
    return (joined(calls, "noisy") - alpha * latents) / sigma


def losses_of(calls, noise):
    """Mean squared error of every row."""
    noisy = joined(calls, "noisy")
    return (calls[0].weight * noisy - noise).square().flatten(1).mean(dim=1)


# Label dropout


def dropped(module, calls, data):
    """Which rows the network saw without their label; the others have that of their image."""
    table = module.model["conditioner"].embedding.weight.detach()
    vectors = joined(calls, "vector")
    labels = torch.tensor([row["label"] for row in data])
    is_null = (vectors == table[NUM_CLASSES]).all(dim=1)
    has_label = (vectors == table[labels]).all(dim=1)
    assert torch.equal(is_null, ~has_label)
    return is_null


def test_so_many_labels_are_dropped_and_replaced_by_the_one_of_no_class(module_with, tmp_path):
    module, data, share = module_with(dropout=0.3), rows(1200), 0.3
    calls = fit(module, tmp_path, data, batch_size=100, max_steps=12)
    number = int(dropped(module, calls, data).sum())
    deviation = math.sqrt(len(data) * share * (1 - share))
    assert abs(number - len(data) * share) < 4 * deviation


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_none_or_all_labels_are_dropped(module_with, tmp_path, share):
    module, data = module_with(dropout=share), rows(16)
    calls = fit(module, tmp_path, data, batch_size=8, max_steps=2)
    assert dropped(module, calls, data).tolist() == [bool(share)] * 16


def test_dropped_rows_follow_from_the_seed_and_change_with_the_update(module_with, tmp_path):
    data = rows(64)
    seen = []
    for seed in (0, 0, 1):
        module = module_with(dropout=0.5, seed=seed)
        calls = fit(module, tmp_path, data, batch_size=32, max_steps=2)
        seen.append(dropped(module, calls, data))
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    first, second = seen[0].chunk(2)
    assert not torch.equal(first, second)


def test_validation_drops_no_label(module_with, tmp_path):
    module, data = module_with(dropout=1.0), rows(8)
    assert not dropped(module, validate(module, tmp_path, data), data).any()


# Updates


def closed_form(calls, latents, *, clip_norm=None, schedule=lambda step: 1.0):
    """The weight after every update of gradient descent on the mean squared error."""
    noises = noise_of(calls, latents).split([len(call.noisy) for call in calls])
    weight, weights = calls[0].weight, []
    for step, (call, noise) in enumerate(zip(calls, noises, strict=True)):
        gradient = (2 * (weight * call.noisy - noise) * call.noisy).mean().item()
        if clip_norm is not None:
            gradient = math.copysign(min(abs(gradient), clip_norm), gradient)
        weight -= RATE * schedule(step) * gradient
        weights.append(weight)
    return weights


@pytest.mark.parametrize("clip_norm", [None, 0.01])
def test_every_update_is_gradient_descent_on_the_mean_loss(module_with, tmp_path, clip_norm):
    def schedule(step):
        return 1 / (1 + step)

    module, data = module_with(clip_norm=clip_norm, schedule=schedule), rows(24)
    calls = fit(module, tmp_path, data, batch_size=8, max_steps=3)
    expected = closed_form(calls, normalized(data), clip_norm=clip_norm, schedule=schedule)
    weights = [call.weight for call in calls[1:]] + [module.denoiser.weight.item()]
    assert weights == pytest.approx(expected, rel=1e-5)


def test_accumulated_batches_make_the_update_of_one_large_batch(module_with, tmp_path):
    weights, drops, data = [], [], rows(32)
    for accumulate_batches in (1, 2):
        module = module_with(dropout=0.5, accumulate_batches=accumulate_batches)
        calls = fit(module, tmp_path, data, batch_size=16 // accumulate_batches, max_steps=2)
        assert len(calls) == 2 * accumulate_batches
        weights.append(module.denoiser.weight.item())
        drops.append(dropped(module, calls, data))
    assert weights[1] == pytest.approx(weights[0], rel=1e-10)
    assert torch.equal(drops[0], drops[1])


def test_training_draws_times_evenly_and_noise_from_the_standard_normal(module_with, tmp_path):
    module, data = module_with(), rows(600)
    calls = fit(module, tmp_path, data, batch_size=100, max_steps=6)
    counts = torch.histc(joined(calls, "time"), bins=10, min=-0.5, max=999.5)
    assert counts.sum() == 600
    assert (counts - 60).abs().max() < 4 * math.sqrt(600 * 0.1 * 0.9)
    noise = noise_of(calls, normalized(data))
    assert abs(noise.mean().item()) < 4 / math.sqrt(noise.numel())
    assert noise.var().item() == pytest.approx(1, abs=4 * math.sqrt(2 / noise.numel()))


def test_training_samples_the_posterior_and_validation_takes_its_mean(module_with, tmp_path):
    """Noise of latents with a deviation of 0.3, normalized, adds to that of the process."""
    data = rows(200, with_variance=True)
    module = module_with()
    calls = fit(module, tmp_path, data, batch_size=100, max_steps=2)
    alpha, sigma = levels_of(calls)
    rest = joined(calls, "noisy") - alpha * normalized(data)
    rest = rest / (sigma.square() + (alpha * SCALE * 0.3).square()).sqrt()
    assert rest.var().item() == pytest.approx(1, abs=4 * math.sqrt(2 / rest.numel()))

    seen = [
        joined(validate(module_with(), tmp_path, rows(20, with_variance=kept)), "noisy")
        for kept in (False, True)
    ]
    assert torch.equal(*seen)


# Validation


def test_the_validation_loss_is_the_mean_over_levels_of_the_mean_over_images(module_with, tmp_path):
    module, data = module_with(), rows(150)
    calls = validate(module, tmp_path, data)
    losses = losses_of(calls, noise_of(calls, normalized(data)))
    uniform = (torch.arange(NUM_NOISE_LEVELS, dtype=torch.float64) + 0.5) / NUM_NOISE_LEVELS
    times = SCHEDULE.network_time(module.process.times(uniform))
    level = (joined(calls, "time")[:, None] - times).abs().argmin(dim=1)
    assert torch.equal(joined(calls, "time"), times[level])
    counts = torch.bincount(level, minlength=NUM_NOISE_LEVELS)
    assert (counts - 15).abs().max() < 4 * math.sqrt(150 * 0.1 * 0.9)
    assert counts.unique().numel() > 1  # or the mean over images would be the same
    means = {f"val/loss_level_{k}": losses[level == k].mean().item() for k in range(len(times))}
    scalars = {name: float(value) for name, value in module.report.scalars.items()}
    assert scalars.keys() == means.keys() | {"val/loss"}
    assert {name: scalars[name] for name in means} == pytest.approx(means, rel=1e-5)
    assert scalars["val/loss"] == pytest.approx(sum(means.values()) / len(means), rel=1e-5)
    assert module.report.num_images == 150
    assert module.report.protocol["val/loss"]["noise_levels"] == NUM_NOISE_LEVELS


def test_level_and_noise_of_an_image_follow_from_its_key_alone(module_with, tmp_path):
    data = rows(30)
    one = validate(module_with(), tmp_path, data)
    other = validate(module_with(seed=9), tmp_path, data[::-1], batch_size=7)
    for name in ("time", "noisy"):
        assert torch.equal(joined(one, name), joined(other, name).flip(0))
    renamed = [row | {"key": f"another {index}"} for index, row in enumerate(data)]
    changed = validate(module_with(), tmp_path, renamed)
    assert not torch.equal(joined(one, "time"), joined(changed, "time"))
    noises = noise_of(one, normalized(data))
    assert noises.flatten(1).unique(dim=0).shape[0] == len(data)


def test_a_level_without_an_image_is_left_out_of_the_mean(module_with, tmp_path):
    module = module_with()
    validate(module, tmp_path, rows(2))
    levels = {n: float(v) for n, v in module.report.scalars.items() if "level" in n}
    assert 1 <= len(levels) <= 2
    mean = sum(levels.values()) / len(levels)
    assert float(module.report.scalars["val/loss"]) == pytest.approx(mean)


def test_validation_sees_the_moving_average_and_training_goes_on_without(module_with, tmp_path):
    module, data = module_with(), rows(16)
    run = trainer(
        tmp_path,
        max_steps=2,
        precision="64-true",
        callbacks=[Ema(decay=0.75, warm_up=False)],
        val_check_interval=1,
        check_val_every_n_epoch=None,
    )
    run.fit(module, DataLoader(data, batch_size=8), DataLoader(data[:1], batch_size=1))
    calls = module.denoiser.calls
    trained, validated = calls[0::2], calls[1::2]
    weights = [call.weight for call in trained] + [module.denoiser.weight.item()]
    average = weights[0]
    for weight, call in zip(weights[1:], validated, strict=True):
        average = 0.75 * average + 0.25 * weight
        assert call.weight == pytest.approx(average, rel=1e-6)
    updates = closed_form(trained, normalized(data))
    assert weights[1:] == pytest.approx(updates, rel=1e-5)

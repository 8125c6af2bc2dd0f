"""A first stage small enough to train in a test, with the attributes that callbacks rely on."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from ldm_lightning.callbacks.throughput import Throughput
from ldm_lightning.module.update_loop import use_update_loop


@dataclass(frozen=True)
class TinyBottleneckOutput:
    latents: Tensor
    continuous: Tensor
    terms: dict[str, Tensor]
    indices: Tensor | None = None


@dataclass(frozen=True)
class TinyOutput:
    reconstructions: Tensor
    bottleneck: TinyBottleneckOutput


@dataclass(frozen=True)
class TinyReport:
    scalars: dict[str, float] = field(default_factory=dict)
    per_channel: dict[str, list[float]] = field(default_factory=dict)
    protocol: dict[str, dict[str, Any]] = field(default_factory=dict)
    num_images: int = 0
    codebook_histogram: Tensor | None = None


class TinyAutoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 2, kernel_size=2, stride=2)
        self.decoder = nn.ConvTranspose2d(2, 3, kernel_size=2, stride=2)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("brightness", torch.zeros(()))

    def forward(self, images: Tensor, noise: Tensor | None = None) -> TinyOutput:
        if self.training:
            self.calls += 1
            self.brightness.copy_(images.mean())
        latents = self.encoder(images)
        terms = {"kl": latents.square().flatten(1).sum(dim=1)}
        return TinyOutput(self.decode(latents), TinyBottleneckOutput(latents, latents, terms))

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder(latents)


class CountingLoader:
    """Yields numbered batches; resumable, so that Lightning continues in the middle."""

    def __init__(self, num_batches: int) -> None:
        self.num_batches = num_batches
        self.start = 0

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self):
        for number in range(self.start, self.num_batches):
            yield {"image": batch_of(number)}
        self.start = 0

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        pass


def batch_of(number: int) -> Tensor:
    return torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(number)) * 2 - 1


class TinyModule(pl.LightningModule):
    """Two optimizers, of which only the generator's counts; data are a function of the update."""

    def __init__(self, *, discriminator_start: int = 0, accumulate: int = 1) -> None:
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(0)
        self.autoencoder = TinyAutoencoder()
        self.averaged = self.autoencoder
        self.discriminator = nn.Conv2d(3, 1, kernel_size=2)
        self.discriminator_start = discriminator_start
        self.accumulate = accumulate
        self.adversarial_fully_on_step = 0
        self.report: TinyReport | None = None
        self.next_report = TinyReport(num_images=4)
        self.scripted: dict[str, list[float]] = {}
        self.validated_at: list[int] = []
        self.validated_weights: list[Tensor] = []
        self.on_batch = lambda module, batch_idx: None
        self.on_validation_batch = lambda module, batch_idx: None
        self.take_assigned = dict

    def configure_optimizers(self):
        return [
            torch.optim.Adam(self.autoencoder.parameters(), lr=0.01),
            torch.optim.Adam(self.discriminator.parameters(), lr=0.01),
        ]

    def training_step(self, batch, batch_idx):
        images = batch_of(batch_idx)
        generator, discriminator = self.optimizers()
        reconstructions = self.autoencoder(images).reconstructions
        loss = (reconstructions - images).square().mean()
        self.manual_backward(loss)
        if (batch_idx + 1) % self.accumulate:
            return
        generator.step()
        generator.zero_grad()
        if self.global_step > self.discriminator_start:
            fake = self.discriminator(reconstructions.detach())
            self.manual_backward((self.discriminator(images) - fake).mean())
            self.trainer.strategy.optimizer_step(discriminator.optimizer, closure=lambda: None)
            discriminator.zero_grad()
        self.log_dict({"train/loss_total": loss, "step": float(self.global_step)})
        self.on_batch(self, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.validated_weights.append(self.autoencoder.encoder.weight.detach().clone())
        self.on_validation_batch(self, batch_idx)

    def on_validation_epoch_end(self):
        self.report = self.next_report
        self.validated_at.append(self.global_step)
        number = len(self.validated_at) - 1
        values = {name: script[number] for name, script in self.scripted.items()}
        values.setdefault("val/psnr", 10.0 + self.global_step)
        self.log_dict({**values, "step": float(self.global_step)})

    def train_dataloader(self):
        return CountingLoader(self.trainer.max_steps * self.accumulate)

    def val_dataloader(self):
        return CountingLoader(2)


@contextmanager
def without_advice() -> Iterator[None]:
    """Silence Lightning about batches, and about its own use of deprecated functions."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        warnings.filterwarnings("ignore", message="Trying to infer the `batch_size`")
        yield


def make_trainer(
    callbacks: list[pl.Callback], *, accumulate: int = 1, **options: Any
) -> pl.Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": 10,
        "logger": False,
        "val_check_interval": 5,
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "enable_checkpointing": None,
    }
    trainer = pl.Trainer(callbacks=[Throughput(), *callbacks], **{**settings, **options})
    return use_update_loop(trainer, accumulate_batches=accumulate)


def fit(trainer: pl.Trainer, module: pl.LightningModule, ckpt_path: Any = None) -> None:
    with without_advice():
        trainer.fit(module, ckpt_path=ckpt_path)

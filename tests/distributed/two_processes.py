"""What two processes and one are compared on: real experiments, tiny, with every path switched on.

``python -m tests.distributed.two_processes FOLDER SCENARIO...`` with LOCAL_RANK, WORLD_SIZE,
MASTER_ADDR and MASTER_PORT set is one of several processes; each trains every scenario and stores
what it saw.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from ldm_lightning.builders.data import build_data
from ldm_lightning.builders.first_stage import build_first_stage_module
from ldm_lightning.builders.training import build_trainer
from ldm_lightning.module.autoencoder import AutoencoderModule
from ldm_lightning.runs.run_folder import RunFolder
from ldm_lightning.training.stages import STAGES
from ldm_lightning.utils.memory import keep_freed_memory
from tests.module.composed import compose_tiny

GLOBAL_BATCH_SIZE = 8


@dataclass(frozen=True)
class Scenario:
    """An experiment and the words that follow it on the command line."""

    experiment: str
    words: tuple[str, ...]


KL_F8 = (
    "resolution=16",
    "bottleneck.initial_log_variance=0.0",  # noise as large as it gets
    "optim.discriminator_learning_rate_ratio=10",  # keeps the adaptive weight off its limit
    "loss.discriminator_start_steps=3",  # warm-up in updates 2 and 3, ramp in 4 to 7
    "loss.discriminator_warmup_steps=2",
    "loss.discriminator_ramp_steps=4",
    "loss.adversarial_weight=0.5",
    "loss.r1_weight=0.5",
    "loss.lecam_weight=0.3",
    "validation.raw=true",
)
VQGAN_F16 = (
    "autoencoder.latent_channels=8",
    "bottleneck.num_codes=16",
    "bottleneck.normalize=false",
    "bottleneck.quantize_start_step=3",
    "bottleneck.restart_every_steps=4",
    "loss.discriminator_start_steps=0",
    "loss.discriminator_warmup_steps=0",
    "loss.discriminator_ramp_steps=0",
    "loss.adversarial_weight=0.8",
    "optim.clip_norm=1.0",
)
VAE_F8 = (
    "resolution=16",
    "callbacks.reconstruction_grid.prior_samples=2",
)
DOUBLE = ("trainer.precision=64", "max_steps=10")
SINGLE = ("trainer.precision=32", "max_steps=1", "optim.warmup_steps=0")
ACCUMULATED = ("trainer.precision=64", "max_steps=6", "accumulate_batches=2")
FROM_THE_FIRST = ("loss.discriminator_start_steps=0", "loss.discriminator_warmup_steps=0")

SCENARIOS = {
    "kl_f8": Scenario("kl_f8", (*KL_F8, *DOUBLE)),
    "vqgan_f16": Scenario("vqgan_f16", (*VQGAN_F16, *DOUBLE)),
    "vae_f8": Scenario("vae_f8", (*VAE_F8, *DOUBLE)),
    "kl_f8_accumulated": Scenario("kl_f8", (*KL_F8, *ACCUMULATED)),
    "vqgan_f16_accumulated": Scenario(
        "vqgan_f16", (*VQGAN_F16, *ACCUMULATED, "bottleneck.normalize=true")
    ),
    "kl_f8_float32": Scenario("kl_f8", (*KL_F8, *SINGLE, *FROM_THE_FIRST)),
    "vqgan_f16_float32": Scenario(
        "vqgan_f16", (*VQGAN_F16, *SINGLE, "bottleneck.quantize_start_step=0")
    ),
    "vae_f8_float32": Scenario("vae_f8", (*VAE_F8, *SINGLE)),
    "command_line": Scenario("kl_f8", (*KL_F8, *DOUBLE, "max_steps=4", "validation.every_steps=2")),
}


class LastGradients(pl.Callback):
    """Keeps the gradients of each network's latest update, as they are before clipping."""

    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for name, parameter in pl_module.named_parameters():
            if parameter.grad is not None:
                self.gradients[name] = parameter.grad.clone()


def words_of(scenario: Scenario, *, num_processes: int) -> tuple[str, ...]:
    """The scenario's words and those that split its batch over processes."""
    trainer = "cpu" if num_processes == 1 else "ddp_cpu"
    batch_size = GLOBAL_BATCH_SIZE // num_processes
    return (*scenario.words, f"trainer={trainer}", f"data.batch_size={batch_size}")


def train(name: str, folder: Path, *, num_processes: int) -> dict[str, Any]:
    """Train one scenario as ``ldm_lightning.train`` does; return everything that must be equal."""
    scenario = SCENARIOS[name]
    words = words_of(scenario, num_processes=num_processes)
    run_folder = RunFolder.create(folder / name)
    cfg = compose_tiny(scenario.experiment, *words, folder=run_folder.path)
    cfg.cache_dir = str(folder / "cache")
    torch.manual_seed(cfg.seed)
    data = build_data(cfg)
    data.num_train_batches = cfg.max_steps * cfg.accumulate_batches
    trainer = build_trainer(cfg, run_folder)
    module: AutoencoderModule = build_first_stage_module(
        cfg, protocol=data.protocol("val"), num_devices=trainer.world_size
    )
    STAGES["first"].measure(cfg, module, data)
    last = LastGradients()
    trainer.callbacks.insert(0, last)
    trainer.fit(module, data)
    return {
        "num_updates": trainer.global_step,
        "gradients": last.gradients,
        "state": module.state_dict(),
        "scalars": module.report.scalars | module.report.latent_scalars,
        "per_channel": module.report.per_channel,
        "num_images": module.report.num_images,
        "histogram": module.report.codebook_histogram,
    }


def main() -> None:
    """Train scenarios as one of several processes."""
    folder, rank = Path(sys.argv[1]), os.environ["LOCAL_RANK"]
    names = sys.argv[2:]
    num_processes = int(os.environ["WORLD_SIZE"])  # Lightning removes it after each fit
    torch.set_num_threads(1)
    keep_freed_memory()
    for name in names:
        seen = train(name, folder, num_processes=num_processes)
        torch.save(seen, folder / f"{name}_{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()

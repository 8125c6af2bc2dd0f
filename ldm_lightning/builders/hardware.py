"""Hardware of a run: device, precision, processes, and how networks lie in memory.

``auto`` chooses from the machine; a line says what was chosen and why.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.strategies import Strategy
from omegaconf import DictConfig
from torch import nn

from ldm_lightning.config import PRECISIONS, check_batch_norm
from ldm_lightning.distributed.ddp import TwoTimeoutDDP
from ldm_lightning.distributed.fsdp import ShardedStrategy
from ldm_lightning.utils.launch import by_torchrun, launched, slurm_step
from ldm_lightning.utils.provenance import device_name

log = logging.getLogger(__name__)


def native_bf16(accelerator: str) -> bool:
    """Return whether the device computes in bfloat16 rather than only storing it."""
    if accelerator != "cpu":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.is_file() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def choose_precision(precision: str, accelerator: str) -> str:
    """Resolve ``auto``: bf16 where the device computes in it, else 32."""
    if precision not in (*PRECISIONS, "auto"):
        raise ValueError(f"precision must be one of {[*PRECISIONS, 'auto']}, got {precision}.")
    if precision != "auto":
        return precision
    return "bf16" if native_bf16(accelerator) else "32"


def autocast(device_type: str, precision: str) -> torch.autocast:
    """The autocast context of a precision, as Lightning would enter it."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device_type, dtype=dtype, enabled=precision in ("bf16", "fp16"))


@dataclass(frozen=True)
class Hardware:
    """Hardware that a run trains on.

    Attributes:
        accelerator: ``cpu`` or ``gpu``.
        devices: Processes on each node.
        num_nodes: Machines.
        strategy: Lightning's name of how they train together.
        precision: One of ``PRECISIONS``.
        description: All of it in a line, with what was asked for and what follows from the device.
    """

    accelerator: str
    devices: int
    num_nodes: int
    strategy: str
    precision: str
    description: str

    @property
    def num_processes(self) -> int:
        """Processes on all machines."""
        return self.devices * self.num_nodes

    @property
    def device(self) -> torch.device:
        """Of one process."""
        return torch.device("cuda" if self.accelerator == "gpu" else "cpu")


def choose_hardware(cfg: DictConfig) -> Hardware:
    """Resolve every ``auto`` of ``trainer`` from the machine.

    Raises:
        ValueError: If what is asked for is not there, or cannot train this discriminator.
    """
    trainer = cfg.trainer
    has_gpu = torch.cuda.is_available()
    accelerator, where = trainer.accelerator, ""
    if accelerator == "auto":
        accelerator = "gpu" if has_gpu else "cpu"
        where = "" if has_gpu else ", as torch sees no GPU"
    if accelerator == "gpu" and not has_gpu:
        raise ValueError(
            "trainer.accelerator=gpu, but torch sees no GPU. Use trainer=cpu or trainer=ddp_cpu."
        )
    devices = trainer.devices
    if devices == "auto":
        devices = torch.cuda.device_count() if accelerator == "gpu" else 1
        where += ", every one there is" if accelerator == "gpu" else ""
    _check_launch(devices, trainer.num_nodes)
    num_processes = devices * trainer.num_nodes
    if accelerator == "cpu" and "discriminator" in cfg and cfg.discriminator._target_:
        check_batch_norm(cfg, num_processes=num_processes)
    strategy = trainer.strategy
    if strategy == "auto" and num_processes > 1:
        # A codebook gets no gradient before it quantizes; DDP must then look for what has none.
        late = cfg.stage == "first" and cfg.bottleneck.get("quantize_start_step", 0) > 0
        strategy = "ddp_find_unused_parameters_true" if late else "ddp"
    precision = choose_precision(str(trainer.precision), accelerator)
    why = "as asked"
    if str(trainer.precision) == "auto":
        why = "which it computes in" if precision == "bf16" else "as it does not compute in bf16"
    name = device_name(torch.device("cuda" if accelerator == "gpu" else "cpu"))
    together = "one process" if num_processes == 1 else f"{num_processes} processes by {strategy}"
    return Hardware(
        accelerator=accelerator,
        devices=devices,
        num_nodes=trainer.num_nodes,
        strategy=strategy,
        precision=precision,
        description=(
            f"{num_processes} x {name}{where}; precision {precision}, {why}; {together}; "
            f"{str(cfg.optim._target_).rpartition('.')[2]}."
        ),
    )


def trainer_settings(cfg: DictConfig) -> dict[str, Any]:
    """Settings of Lightning's Trainer; ``auto`` chooses from the device and says what and why."""
    hardware = choose_hardware(cfg)
    log.info("Device: %s", hardware.description)
    return {
        "accelerator": hardware.accelerator,
        "devices": hardware.devices,
        "num_nodes": hardware.num_nodes,
        "strategy": _strategy(hardware.strategy, answer_seconds=cfg.trainer.timeout_seconds),
        "precision": PRECISIONS[hardware.precision],
        "deterministic": cfg.trainer.deterministic,
        "plugins": _environment(),
        # weights put together for a validation in this mode could not be trained after it
        "inference_mode": hardware.strategy != "fsdp",
        "sync_batchnorm": hardware.accelerator == "gpu" and hardware.num_processes > 1,
    }


def _strategy(name: str, *, answer_seconds: float) -> Strategy | str:
    """Strategy of several processes; a silent one ends the run after ``answer_seconds``."""
    if any(start in name for start in ("spawn", "fork", "notebook")):
        raise ValueError(
            f"trainer.strategy={name} copies this process; here every process runs the command "
            f"again. Use trainer.strategy=auto, or {name.partition('_')[0]}."
        )
    if name == "fsdp":
        return ShardedStrategy(answer_seconds=answer_seconds)
    if name in ("ddp", "ddp_find_unused_parameters_true"):
        return TwoTimeoutDDP(find_unused_parameters=name != "ddp", answer_seconds=answer_seconds)
    return name


def prepare_networks(cfg: DictConfig, networks: Sequence[nn.Module]) -> None:
    """Lay out and compile networks as ``cfg.trainer`` says; neither renames a parameter."""
    for network in networks:
        if cfg.trainer.channels_last:
            network.to(memory_format=torch.channels_last)
        if cfg.trainer.compile:
            network.compile()


def _check_launch(devices: int, num_nodes: int) -> None:
    """Refuse to train on other processes than were started.

    Raises:
        ValueError: Naming both numbers.
    """
    started, wanted = launched().num_processes, devices * num_nodes
    if started == wanted or (started == 1 and slurm_step() is None):  # it starts the others
        return
    hint = " Or set SLURM_JOB_NAME=bash, and the others are started here." if started == 1 else ""
    raise ValueError(
        f"{started} process(es) were started, but trainer.devices={devices} on each of "
        f"trainer.num_nodes={num_nodes} machine(s) makes {wanted}. Give trainer.devices and "
        f"trainer.num_nodes as torchrun or srun has them.{hint}"
    )


def _environment() -> list[ClusterEnvironment]:
    """Return what tells processes of a run from each other, as ``launched`` reads it.

    Lightning's own search would take a shell in an allocation of SLURM for one of its tasks.
    """
    if by_torchrun():
        return [TorchElasticEnvironment()]
    if slurm_step() is None:
        return [LightningEnvironment()]
    if "SLURM_NTASKS_PER_NODE" not in os.environ and launched().num_processes > 1:
        raise ValueError(
            f"The environment says SLURM_NTASKS={os.environ['SLURM_NTASKS']}, but not how many are "
            "on a machine: ask srun for --ntasks-per-node instead of --ntasks."
        )
    # Its own requeueing would save wherever the signal arrives, between two networks' updates too.
    return [SLURMEnvironment(auto_requeue=False)]


@dataclass(frozen=True)
class Computing:
    """Device and precision of a measurement."""

    device: torch.device
    precision: str

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights and images; autocast narrows it further."""
        return torch.float64 if self.precision == "64" else torch.float32

    def autocast(self) -> torch.autocast:
        """The context of the precision."""
        return autocast(self.device.type, self.precision)


def choose_computing(precision: str) -> Computing:
    """Take the GPU where there is one; ``auto`` precision follows from the device."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Computing(device, choose_precision(precision, device.type))

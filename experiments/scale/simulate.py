"""Predict how two published models would scale to 8 and 64 GPUs, and where that would break.

python experiments/scale/simulate.py

Parameters and operations are counted here, on networks without memory; the rest of what goes in
stands in ``ASSUMPTIONS`` and in README.md beside this file, which says where it comes from. Writes
results.csv and efficiency.png.
"""

import argparse
import csv
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torchvision
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch._subclasses.fake_tensor import FakeTensorMode

from ldm_lightning.autoencoder.autoencoder import Autoencoder
from ldm_lightning.builders.meta_networks import networks_without_memory
from ldm_lightning.config import CONF_DIR, check_values, register_resolvers
from ldm_lightning.nn.condition import Condition
from ldm_lightning.planning.counter import Counter

GB = 1e9


@dataclass(frozen=True)
class Assumptions:
    """Quantities that are not measured.

    Attributes:
        peak_flops: Of one GPU in dense bf16, per second; NVIDIA H100 SXM.
        utilization: Share of it that training convolutions reach.
        overlap: Share of the backward pass behind which gradients can hide.
        nvlink: Bytes a GPU sends to others of its machine, per second.
        gpus_per_machine: GPUs that NVLink joins.
        cores_per_gpu: Processor cores that decode for each GPU.
    """

    peak_flops: float = 989e12
    utilization: float = 0.35
    overlap: float = 0.8
    nvlink: float = 0.8 * 450 * GB
    gpus_per_machine: int = 8
    cores_per_gpu: int = 12


ASSUMPTIONS = Assumptions()
# Bytes a machine sends to others per second, four fifths of the nominal bandwidth.
NETWORKS = {
    "InfiniBand 8 x 400 Gb/s": 0.8 * 400 * GB,
    "Ethernet 100 Gb/s": 0.8 * 12.5 * GB,
    "Ethernet 25 Gb/s": 0.8 * 3.125 * GB,
}
GRADIENT_BYTES = {"fp32": 4, "bf16": 2}
# Measured on one core of an AMD EPYC: `python -m benchmarks --part input_pipeline`, JPEG of
# 1024 x 768 pixels to 256 px; and reading a latent cache, see README.md.
JPEGS_PER_CORE_S = 145.0
LATENTS_PER_CORE_S = 5000.0


@dataclass(frozen=True)
class Workload:
    """A model in training, one GPU's part of it.

    Attributes:
        name: Of the experiment.
        num_hidden: Parameters whose gradients are exchanged during the backward pass.
        num_bare: Parameters whose gradients are exchanged after it.
        flops: Operations of an update for one image.
        backward_fraction: Share of them during which gradients can be exchanged.
        batch_size: Images per GPU and update.
        images_per_core_s: What one core can read.
    """

    name: str
    num_hidden: int
    num_bare: int
    flops: float
    backward_fraction: float
    batch_size: int
    images_per_core_s: float


@dataclass(frozen=True)
class Prediction:
    """One row of results.csv; times in milliseconds, sizes in 10^6 bytes."""

    model: str
    num_gpus: int
    network: str
    gradients: str
    batch_per_gpu: int
    gradient_mb: float
    compute_ms: float
    all_reduce_ms: float
    exposed_ms: float
    images_per_s_and_gpu: float
    cores_needed_per_gpu: float
    data_ms: float
    efficiency: float
    smallest_batch_for_90_percent: int


def ring_seconds(num_bytes: float, num: int, bandwidth: float) -> float:
    """Time of an all-reduce around a ring: 2 (N - 1) / N x bytes / bandwidth.

    Source: Patarasuk & Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of
    workstations"; latency is left out.
    """
    return 2 * (num - 1) / num * num_bytes / bandwidth


def all_reduce_seconds(
    num_bytes: float, num_gpus: int, network: float, given: Assumptions
) -> float:
    """A ring within each machine, then one over machines, in which all cards of a machine share."""
    local = min(num_gpus, given.gpus_per_machine)
    seconds = ring_seconds(num_bytes, local, given.nvlink)
    return seconds + ring_seconds(num_bytes, num_gpus // local, network)


def predict(
    work: Workload, num_gpus: int, network: str, gradients: str, given: Assumptions = ASSUMPTIONS
) -> Prediction:
    """An update takes what computing and the exposed exchange take, or reading, if that is more."""
    size = GRADIENT_BYTES[gradients]
    hidden, bare = (
        all_reduce_seconds(num * size, num_gpus, NETWORKS[network], given)
        for num in (work.num_hidden, work.num_bare)
    )
    per_image = work.flops / (given.peak_flops * given.utilization)

    def times(batch_size: int) -> tuple[float, float, float]:
        compute = batch_size * per_image
        exposed = max(0.0, hidden - given.overlap * work.backward_fraction * compute) + bare
        return compute, exposed, compute / (compute + exposed)

    compute, exposed, _ = times(work.batch_size)
    data = work.batch_size / (given.cores_per_gpu * work.images_per_core_s)
    smallest = next(batch for batch in range(1, 100_000) if times(batch)[2] >= 0.9)
    return Prediction(
        model=work.name,
        num_gpus=num_gpus,
        network=network if num_gpus > given.gpus_per_machine else "NVLink",
        gradients=gradients,
        batch_per_gpu=work.batch_size,
        gradient_mb=(work.num_hidden + work.num_bare) * size / 1e6,
        compute_ms=compute * 1e3,
        all_reduce_ms=(hidden + bare) * 1e3,
        exposed_ms=exposed * 1e3,
        images_per_s_and_gpu=work.batch_size / compute,
        cores_needed_per_gpu=work.batch_size / compute / work.images_per_core_s,
        data_ms=data * 1e3,
        efficiency=compute / max(compute + exposed, data),
        smallest_batch_for_90_percent=smallest,
    )


def first_stage_workload() -> Workload:
    """The published kl_f8 at 256 px with its discriminator and LPIPS."""
    cfg = _published("kl_f8")
    parts = networks_without_memory(cfg)
    autoencoder, discriminator = parts["autoencoder"], parts["discriminator"]
    assert isinstance(autoencoder, Autoencoder)  # as that name promises
    latent_shape = autoencoder.latent_shape((1, 3, 256, 256))
    with torch.device("meta"):
        vgg = torchvision.models.vgg16().features[:30]
    images = (1, 3, 256, 256)
    a = _flops(parts["encoder"], images) + _flops(parts["decoder"], tuple(latent_shape))
    v, d = _flops(vgg, images), _flops(discriminator, images)
    return Workload(
        name="kl_f8",
        num_hidden=_num_parameters(autoencoder),
        num_bare=_num_parameters(discriminator),
        flops=3 * a + 3 * v + 8 * d,  # tests/module/test_autoencoder.py counts them
        backward_fraction=2 * a / (3 * a + 3 * v + 8 * d),
        batch_size=cfg.data.batch_size,
        images_per_core_s=JPEGS_PER_CORE_S,
    )


def second_stage_workload() -> Workload:
    """The published U-Net of ldm_celebahq on cached latents, 3 x 64 x 64."""
    cfg = _published("ldm_celebahq")
    denoiser = networks_without_memory(cfg)["denoiser"]
    forward = _flops(denoiser, (1, 3, 64, 64), torch.zeros(1), Condition())
    return Workload(
        name="ldm_celebahq",
        num_hidden=_num_parameters(denoiser),
        num_bare=0,
        flops=3 * forward,
        backward_fraction=2 / 3,
        batch_size=cfg.data.batch_size,
        images_per_core_s=LATENTS_PER_CORE_S,
    )


def _published(experiment: str) -> DictConfig:
    register_resolvers()
    words = [f"experiment={experiment}", "scale=paper", "output_dir=unused"]
    if experiment.startswith("ldm_"):
        words.append("first_stage.checkpoint=unused")
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = compose("train", overrides=words)
    check_values(cfg)
    return cfg


def _num_parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _flops(network: torch.nn.Module, shape: tuple[int, ...], *others: object) -> int:
    """Operations of a forward pass, on tensors that have a shape and no content."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        network.to_empty(device="cpu")
        with Counter() as counter:
            network(torch.empty(shape), *others)
    return counter.flops


def predictions(workloads: list[Workload]) -> list[Prediction]:
    """8 GPUs of one machine, and 64 over each network."""
    places = [(8, next(iter(NETWORKS))), *((64, network) for network in NETWORKS)]
    return [
        predict(work, num_gpus, network, gradients)
        for work in workloads
        for gradients in GRADIENT_BYTES
        for num_gpus, network in places
    ]


def write_csv(rows: list[Prediction], path: Path) -> None:
    """Four digits of everything."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in fields(Prediction))
        for row in rows:
            writer.writerow(f"{v:.4g}" if isinstance(v, float) else v for v in astuple(row))


def draw(workloads: list[Workload], path: Path) -> None:
    """Efficiency on 64 GPUs over the batch of one, fp32 gradients, and the batch used here."""
    figure, panels = plt.subplots(1, len(workloads), figsize=(10, 4), layout="constrained")
    for panel, work in zip(panels, workloads, strict=True):
        batches = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
        for network, color in zip(NETWORKS, ("#0072b2", "#e69f00", "#d55e00"), strict=True):
            efficiency = [
                100 * predict(replace(work, batch_size=batch), 64, network, "fp32").efficiency
                for batch in batches
            ]
            panel.plot(batches, efficiency, "o-", label=network, color=color, markersize=4)
        panel.axvline(work.batch_size, color="gray", linewidth=1)
        panel.set(xscale="log", ylim=(0, 105), title=work.name, xlabel="images per GPU and update")
        panel.set_xticks(batches[::2], [str(batch) for batch in batches[::2]])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("predicted efficiency of 64 GPUs [%]")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Predict, write, draw."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    workloads = [first_stage_workload(), second_stage_workload()]
    rows = predictions(workloads)
    write_csv(rows, folder / "results.csv")
    draw(workloads, folder / "efficiency.png")
    for work in workloads:
        print(
            f"{work.name}: {(work.num_hidden + work.num_bare) / 1e6:.1f} M parameters, "
            f"{work.flops / 1e12:.2f} TFLOP an image and update"
        )
    for row in rows:
        print(
            f"{row.model:13} {row.num_gpus:3} GPUs, {row.network:24} {row.gradients}: "
            f"{100 * row.efficiency:.0f} %, 90 % from {row.smallest_batch_for_90_percent} a GPU on"
        )


if __name__ == "__main__":
    main()

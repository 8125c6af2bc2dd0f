"""Another memory layout and compiled networks keep the mathematics and every name."""

import functools

import pytest
import torch
from torch import nn

from ldm_lightning.builders.data import build_data
from ldm_lightning.builders.first_stage import build_first_stage_module
from ldm_lightning.builders.hardware import prepare_networks
from ldm_lightning.builders.training import build_trainer
from ldm_lightning.checkpoints.checkpoint import load_checkpoint
from ldm_lightning.runs.run_folder import RunFolder
from tests.module.composed import compose_tiny


@pytest.fixture
def traced(monkeypatch):
    """Compile as far as the graph: generating code for it takes minutes and is torch's own."""
    original, compiled = nn.Module.compile, []

    @functools.wraps(original)
    def compile_to_the_graph(self):
        compiled.append(self)
        original(self, backend="aot_eager")

    monkeypatch.setattr(nn.Module, "compile", compile_to_the_graph)
    yield compiled
    torch.compiler.reset()


def train(folder, *words):
    cfg = compose_tiny("kl_f8", "trainer=cpu", "max_steps=2", *words, folder=folder)
    cfg.cache_dir = str(folder / "cache")
    torch.manual_seed(0)
    data = build_data(cfg)
    data.num_train_batches = cfg.max_steps
    trainer = build_trainer(cfg, RunFolder.create(folder))
    module = build_first_stage_module(cfg, protocol=data.protocol("val"), num_devices=1)
    prepare_networks(cfg, module.networks)
    trainer.fit(module, data)
    stored = load_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]
    return module, stored


# torch 2.14's tracer reads .grad of its inputs
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_networks_train_as_they_are_and_keep_their_names(tmp_path, traced):
    words = ("trainer.precision=64", "loss.discriminator_start_steps=0")
    _, plain = train(tmp_path / "plain", *words)
    module, stored = train(tmp_path / "compiled", *words, "trainer.compile=true")
    assert traced == module.networks
    assert len(traced) == 4  # encoder, decoder, discriminator, perceptual distance
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 4
    assert stored.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(stored[name], value, rtol=1e-9, atol=1e-11)


def test_channels_last_reaches_convolutions_and_keeps_the_mathematics(tmp_path):
    words = ("trainer.precision=64", "loss.discriminator_start_steps=0")
    _, plain = train(tmp_path / "plain", *words)
    module, stored = train(tmp_path / "last", *words, "trainer.channels_last=true")
    kernels = [p for n in module.networks for p in n.parameters() if p.ndim == 4 and p.shape[2] > 1]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    for name, value in plain.items():
        torch.testing.assert_close(stored[name], value, rtol=1e-8, atol=1e-10)

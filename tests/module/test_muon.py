"""Muon for hidden matrices, AdamW for the rest, as one optimizer of one state."""

import copy
import functools

import pytest
import torch
from torch import nn

from ldm_lightning.checkpoints.checkpoint import load_checkpoint
from ldm_lightning.denoiser.dit import DiT
from ldm_lightning.denoiser.unet import UNet
from ldm_lightning.discriminator.patchgan import PatchGAN
from ldm_lightning.module import muon
from ldm_lightning.module.muon import (
    ADAMW,
    MUON,
    Muon,
    hidden_matrices,
    make_optimizer,
    orthogonalized,
)
from tests.cli.run import command, run_folder, tensors_of, tiny
from tests.cli.second_stage import tiny_second
from tests.module.small import loader, small_module, trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
SETTINGS = {"lr": 0.05, "weight_decay": 0.1}


def stepped(make, shapes, num_steps=4):
    """Parameters after updates with gradients drawn alike."""
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    optimizer = make(parameters)
    for _ in range(num_steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return parameters


def test_matrices_step_as_torchs_muon_and_the_rest_as_its_adamw(monkeypatch):
    def both(parameters):
        matrices, others = parameters[:3], parameters[3:]
        first = torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", **SETTINGS)
        second = torch.optim.AdamW(others, betas=(0.5, 0.9), fused=True, **SETTINGS)
        return pair(first, second)

    shapes = [(4, 9), (9, 4), (6, 6), (5,), (1,)]
    ours = functools.partial(Muon, betas=(0.5, 0.9), **SETTINGS)
    theirs = stepped(both, shapes)
    for mine, other in zip(stepped(ours, shapes), theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0.03, atol=0.01)  # they round to bf16
    monkeypatch.setattr(muon, "iteration_dtype", lambda matrix: torch.bfloat16)
    assert all(map(torch.equal, stepped(ours, shapes), theirs))


def pair(first, second):
    """Two optimizers that step together."""
    first.step_alone = first.step
    first.step = lambda: (first.step_alone(), second.step())
    return first


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_kernel_steps_as_the_matrix_that_it_is(layout):
    (kernel,) = stepped(
        lambda given: Muon([set_layout(given[0], layout)], **SETTINGS), [(4, 3, 3, 2)]
    )
    (matrix,) = stepped(functools.partial(Muon, **SETTINGS), [(4, 18)])
    torch.testing.assert_close(kernel.flatten(1), matrix)


def set_layout(parameter, layout):
    parameter.data = parameter.data.contiguous(memory_format=layout)
    return parameter


@pytest.mark.parametrize("shape", [(5, 40), (40, 5)])
def test_the_short_iteration_is_the_published_one_over_six_decades_of_singular_values(shape):
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, 5, generator=generator)).Q for n in shape)
    matrix = (left * torch.logspace(-6, 0, 5)) @ right.T
    wide = (matrix if shape == (5, 40) else matrix.T).double()
    expected = muon._iterated(wide / wide.norm())
    found = orthogonalized(matrix)
    torch.testing.assert_close(
        (found if shape == (5, 40) else found.T).double(), expected, rtol=0, atol=1e-3
    )


def test_values_out_of_bounds_and_vectors_are_refused():
    matrix, vector = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))
    for changes, named in (
        ({"lr": -1.0}, "-1.0"),
        ({"momentum": 1.0}, "momentum.*1.0"),
        ({"betas": (0.5, 2.0)}, "betas.*2.0"),
    ):
        with pytest.raises(ValueError, match=named):
            Muon([matrix], **{**SETTINGS, **changes})
    with pytest.raises(ValueError, match=r"\(2,\)"):
        Muon([{"params": [vector], "method": MUON}], **SETTINGS)


def names_of(network):
    hidden = {id(matrix) for matrix in hidden_matrices(network)}
    return {name for name, parameter in network.named_parameters() if id(parameter) in hidden}


def test_ends_of_a_network_norms_biases_and_embeddings_are_left_to_adamw():
    module = small_module()
    for network, ends in (
        (module.autoencoder.encoder, ("conv_in", "conv_out")),
        (module.autoencoder.decoder, ("conv_in", "conv_out")),
        (PatchGAN(image_channels=3, base_width=8, num_layers=2), ("layers.0", "layers.8")),
        (
            UNet(
                in_channels=4, out_channels=4, base_width=8, width_multipliers=[1, 2],
                num_res_blocks=1, attention_at=[2], num_heads=1,
            ),
            ("time_embed", "input_blocks.0", "out"),
        ),
        (
            DiT(in_channels=4, out_channels=4, width=8, num_blocks=2, num_heads=2, patch_size=2),
            ("x_embedder", "t_embedder", "final_layer"),
        ),
    ):  # fmt: skip
        left = {
            name
            for name, parameter in network.named_parameters()
            if parameter.ndim < 2 or name.startswith(tuple(f"{end}." for end in ends))
        }
        assert names_of(network) == set(dict(network.named_parameters())) - left
    assert not hidden_matrices(PatchGAN(image_channels=3, normalization="spectral"))
    assert not hidden_matrices(nn.Embedding(5, 4))


def test_a_module_gives_each_parameter_one_method_and_the_schedule_scales_both(tmp_path):
    module = small_module(optimizer=functools.partial(Muon, lr=1e-3))
    object.__setattr__(module.optimization, "schedule", lambda step: 0.5**step)
    run = trainer(tmp_path, max_steps=2)
    before = copy.deepcopy(module.autoencoder.state_dict())
    run.fit(module, loader(2))
    for optimizer, network in zip(
        run.optimizers, (module.autoencoder, module.discriminator), strict=True
    ):
        groups = {group["method"]: group for group in optimizer.param_groups}
        assert set(groups) == {MUON, ADAMW}
        assert [group["lr"] for group in groups.values()] == [5e-4, 5e-4]
        given = [id(p) for group in groups.values() for p in group["params"]]
        assert sorted(given) == sorted(map(id, network.parameters()))
        kept = {
            method: {len(optimizer.state[parameter]) for parameter in group["params"]}
            for method, group in groups.items()
        }
        assert kept == {MUON: {1}, ADAMW: {3}}
    after = module.autoencoder.state_dict()
    assert not [name for name, value in after.items() if torch.equal(value, before[name])]


def test_other_optimizers_get_their_parameters_as_one_group():
    network = PatchGAN(image_channels=3, base_width=8, num_layers=2)
    adam = functools.partial(torch.optim.AdamW, lr=1e-3)
    made = make_optimizer(adam, list(network.parameters()), networks=[network])
    assert [len(group["params"]) for group in made.param_groups] == [
        len(list(network.parameters()))
    ]


@pytest.mark.slow
def test_a_continued_run_of_either_stage_equals_the_uninterrupted_one_bit_for_bit(tmp_path):
    first = tmp_path / "whole"
    for words_of in (
        lambda **given: tiny("vq_f4", optim="muon", **given),
        lambda **given: tiny_second(run_folder(first, "vq_f4"), optim="muon", **given),
    ):
        ends = []
        for name, parts in (("whole", [4]), ("parts", [2, 4])):
            (tmp_path / name).mkdir(exist_ok=True)
            words = words_of(max_steps=parts[0], trainer__precision=32)
            experiment = words[0].removeprefix("experiment=")
            for max_steps in parts:
                ended = command("train", words, tmp_path / name)
                assert ended.code == 0, ended.output
                run = run_folder(tmp_path / name, experiment)
                content = load_checkpoint(run / "checkpoints/last.ckpt")
                assert content["global_step"] == max_steps
                words = [f"resume={run}", f"max_steps={parts[-1]}"]
            states = content["optimizer_states"]
            methods = [[group["method"] for group in state["param_groups"]] for state in states]
            assert methods == [[MUON, ADAMW]] * len(methods)
            kept = ("state_dict", "ema", "optimizer_states")
            ends.append(tensors_of({key: content[key] for key in kept}))
        assert ends[0].keys() == ends[1].keys()
        different = [name for name, one in ends[0].items() if not torch.equal(one, ends[1][name])]
        assert not different

"""Any optimizer by its class, its arguments checked before anything is trained."""

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from ldm_lightning.builders.optimizer import build_optimizer_factory
from ldm_lightning.checks.constructors import SHARED_OPTIMIZER_KEYS
from ldm_lightning.config import CONF_DIR
from ldm_lightning.module.optimizer_state import (
    expected_state,
    moments_per_parameter,
    state_of_stand_in,
)

MOMENTS = {"adam": 2, "radam": 2, "sgd": 1, "muon": 1}


def optim(name="adam", **changes):
    shared = OmegaConf.load(CONF_DIR / "base.yaml").optim
    return OmegaConf.merge(shared, OmegaConf.load(CONF_DIR / "optim" / f"{name}.yaml"), changes)


def stepped(optimizer_of, num_steps=3):
    torch.manual_seed(0)
    network = nn.Linear(5, 4)
    optimizer = optimizer_of(network.parameters())
    for _ in range(num_steps):
        network(torch.ones(2, 5)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return network.weight.detach()


def test_adam_is_torchs_fused_adamw_to_the_last_bit():
    def reference(parameters):
        return torch.optim.AdamW(
            parameters, lr=3e-3, betas=(0.5, 0.9), weight_decay=0.25, fused=True
        )

    factory = build_optimizer_factory(optim(weight_decay=0.25), rate=3e-3)
    assert torch.equal(stepped(factory), stepped(reference))


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF_DIR / "optim").glob("*.yaml")))
def test_each_file_builds_an_optimizer_whose_state_is_known(name):
    cfg = optim(name)
    factory = build_optimizer_factory(cfg, rate=0.5)
    (group,) = factory([nn.Parameter(torch.zeros(3))]).param_groups
    given = {key: value for key, value in cfg.items() if key not in SHARED_OPTIMIZER_KEYS}
    assert {key: group[key] for key in given} == {
        key: tuple(value) if key == "betas" else value for key, value in given.items()
    }
    assert group["lr"] == 0.5
    assert moments_per_parameter(factory) == MOMENTS[name]


def test_what_is_kept_of_a_parameter_has_its_shape():
    parameter = nn.Parameter(torch.zeros(7))
    kept = expected_state(state_of_stand_in(build_optimizer_factory(optim(), rate=1.0)), parameter)
    assert {name: tuple(value.shape) for name, value in kept.items()} == {
        "step": (),
        "exp_avg": (7,),
        "exp_avg_sq": (7,),
    }


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("adam", {"beta": [0.5, 0.9]}, r"optim\.beta:.*optim\.betas"),
        ("sgd", {"fused_kernel": 1}, r"optim\.fused_kernel:.*SGD"),
        ("sgd", {"zzz": 1}, r"optim\.zzz:.*momentum"),
        ("adam", {"betas": [0.5, 2.0]}, "AdamW.*2.0"),
        ("adam", {"betas": 0.5}, "AdamW"),
        ("sgd", {"momentum": 0.0}, "SGD"),
        ("adam", {"_target_": "torch.optim.Adan"}, r"torch\.optim\.Adan"),
        ("adam", {"_target_": "torch.nn.Linear"}, r"torch\.nn\.Linear"),
        ("adam", {"_target_": "nowhere.Adam"}, r"nowhere\.Adam"),
    ],
)
def test_what_an_optimizer_does_not_take_is_refused_by_name(name, changes, named):
    with pytest.raises(ValueError, match=named):
        build_optimizer_factory(optim(name, **changes), rate=1.0)

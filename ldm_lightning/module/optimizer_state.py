"""State that an optimizer keeps of each parameter, found by one step of a stand-in."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm_lightning.module.settings import OptimizerFactory

STAND_IN_SHAPE = (2, 3)


def state_of_stand_in(
    factory: OptimizerFactory, settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the state of a parameter [2, 3] after one step, by name.

    Args:
        factory: Makes the optimizer.
        settings: Of the parameter's group, such as its method; None leaves them to the optimizer.
    """
    parameter = nn.Parameter(torch.zeros(STAND_IN_SHAPE, device="cpu"))
    parameter.grad = torch.ones(STAND_IN_SHAPE, device="cpu")
    optimizer = factory([{**(settings or {}), "params": [parameter]}])
    optimizer.step()
    return dict(optimizer.state[parameter])


def expected_state(stand_in: dict[str, Any], parameter: Tensor) -> dict[str, Tensor]:
    """The tensors that a state holds of another parameter, where their shapes are known.

    Args:
        stand_in: Of ``state_of_stand_in``.
        parameter: Of any shape.
    """
    tensors = {name: value for name, value in stand_in.items() if isinstance(value, Tensor)}
    alike = {name for name, value in tensors.items() if value.shape == STAND_IN_SHAPE}
    return {
        name: parameter if name in alike else value
        for name, value in tensors.items()
        if name in alike or not value.ndim
    }


def moments_per_parameter(factory: OptimizerFactory) -> int:
    """Numbers that an optimizer keeps for each number it trains: 2 for Adam, 0 for plain SGD."""
    states = state_of_stand_in(factory).values()
    return sum(isinstance(state, Tensor) and state.shape == STAND_IN_SHAPE for state in states)

"""From ``optim`` to a factory of optimizers: any class of torch.optim, or of the user's own."""

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from hydra.utils import get_class
from omegaconf import DictConfig
from torch import nn
from torch.optim import Optimizer

from ldm_lightning.checks.constructors import SHARED_OPTIMIZER_KEYS
from ldm_lightning.config import plain
from ldm_lightning.module.settings import OptimizerFactory


def build_optimizer_factory(optim: DictConfig, *, rate: float) -> OptimizerFactory:
    """Build a factory of optimizers with a learning rate.

    Args:
        optim: ``_target_`` names the class; what is not shared by all optimizers goes to it.
        rate: Its ``lr``.

    Raises:
        ValueError: If ``_target_`` is no optimizer, or it does not take an argument or value.
    """
    target = str(optim._target_)
    arguments = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in plain(optim).items()
        if name not in SHARED_OPTIMIZER_KEYS
    }
    optimizer = _optimizer_class(target)
    known = inspect.signature(optimizer).parameters
    takes_any = any(known[name].kind is known[name].VAR_KEYWORD for name in known)
    for name in {*arguments, "lr"} - known.keys():
        if not takes_any:
            raise ValueError(_unknown(name, target, known))
    factory = functools.partial(optimizer, lr=rate, **arguments)
    try:
        factory([nn.Parameter(torch.zeros(2, 3, device="cpu"))])
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"optim._target_={target} cannot be built: {error}") from error
    return factory


def _optimizer_class(target: str) -> Callable[..., Optimizer]:
    try:
        found: Any = get_class(target)
    except (ImportError, ValueError) as error:
        raise ValueError(f"optim._target_={target} names no class: {error}") from error
    if not issubclass(found, Optimizer):
        raise ValueError(f"optim._target_={target} is no torch.optim.Optimizer.")
    return found


def _unknown(name: str, target: str, known: Any) -> str:
    names = [own for own in known if own not in ("params", "lr")]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean optim.{near[0]}?" if near else f"it takes {', '.join(names)}."
    return f"optim.{name}: {target} has no argument {name}; {hint}"

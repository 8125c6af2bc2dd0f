"""Train and use latent diffusion models and their first stages.

A notebook needs ``open_first_stage`` and ``open_generator``. They import torch when they are first
asked for, so that ``import ldm_lightning`` takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldm_lightning.models import FirstStage, Generator, open_first_stage, open_generator

__all__ = ["FirstStage", "Generator", "open_first_stage", "open_generator"]


def __getattr__(name: str) -> Any:
    """Import what is offered when it is used (PEP 562)."""
    if name in __all__:
        return getattr(import_module("ldm_lightning.models"), name)
    raise AttributeError(f"module 'ldm_lightning' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Names that a notebook completes."""
    return sorted({*globals(), *__all__})

"""Weights & Biases as a logger that never asks and, unless told so, never calls."""

import netrc
import os
from pathlib import Path
from urllib.parse import urlparse

from lightning.pytorch.loggers import WandbLogger


def wandb_logger(
    save_dir: str | Path, *, offline: bool, project: str, name: str | None = None
) -> WandbLogger:
    """Build Lightning's W&B logger; the package ``wandb`` is imported here, not before.

    Args:
        save_dir: The run folder; W&B writes to ``wandb/`` inside it.
        offline: Write locally alone; ``wandb sync`` uploads later.
        project: Project's name in W&B.
        name: Run's name in W&B; by default the folder's.

    Raises:
        ValueError: If ``offline`` is false and there is no API key. W&B would ask for one and wait.
    """
    if not offline and not _has_api_key():
        raise ValueError(
            "logger.offline=false needs a W&B API key: set WANDB_API_KEY or run `wandb login` "
            "first, or leave logger.offline=true and upload later with `wandb sync`."
        )
    folder = Path(save_dir)
    return WandbLogger(
        name=name or folder.name, save_dir=str(folder), project=project, offline=offline
    )


def _has_api_key() -> bool:
    """Whether W&B would find a key without asking."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False

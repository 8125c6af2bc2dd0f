"""Experiments of ours as a command line composes them."""

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from ldm_lightning.config import CONF_DIR, register_resolvers


def composed(*words: str) -> DictConfig:
    """The configuration of a training with these words."""
    register_resolvers()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("train", overrides=list(words))

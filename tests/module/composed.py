"""Real experiments, composed from conf/ and made small enough to train in a test."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from ldm_lightning.config import CONF_DIR, check_values, register_resolvers

TINY = (
    "data=shapes",
    "resolution=32",
    "data.num_train_images=32",  # several passes over the data in a run
    "data.num_val_images=13",  # an uneven share for one of two processes
    "data.val_batch_size=5",
    "autoencoder.base_width=8",
    "autoencoder.num_res_blocks=1",
    "optim.learning_rate=1e-3",
    "optim.warmup_steps=3",
    "log_every_steps=1",
    "validation.every_steps=10",
    "callbacks.progress=null",
)
TINY_DISCRIMINATOR = (
    "discriminator.base_width=8",
    "discriminator.num_layers=2",
    "discriminator.normalization=group",
    "loss.discriminator_start_fraction=null",
)


def overrides_of(experiment: str, *changes: str) -> list[str]:
    """Command-line words that make an experiment tiny; ``changes`` come last and win."""
    tiny = [*TINY, *(() if experiment == "vae_f8" else TINY_DISCRIMINATOR)]
    return [f"experiment={experiment}", *tiny, *changes]


def compose_tiny(experiment: str, *changes: str, folder: Path) -> DictConfig:
    """The configuration that ``ldm-train`` would run with these words."""
    register_resolvers()
    words = [*overrides_of(experiment, *changes), f"output_dir={folder}"]
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = compose("train", overrides=words)
    check_values(cfg)
    return cfg

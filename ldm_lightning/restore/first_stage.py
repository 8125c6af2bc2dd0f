"""A trained first stage from its checkpoint."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from ldm_lightning.autoencoder.autoencoder import Autoencoder
from ldm_lightning.autoencoder.frozen import FrozenFirstStage
from ldm_lightning.autoencoder.normalizer import LatentNormalizer
from ldm_lightning.checkpoints.checkpoint import load_checkpoint, load_strict, trained_weights
from ldm_lightning.checkpoints.contents import COUNT, MAPPING, SIZE, OrNone, check
from ldm_lightning.checkpoints.targets import PART_PACKAGES, check_targets
from ldm_lightning.restore.stored_config import read_config_keys
from ldm_lightning.runs.run_folder import find_checkpoint
from ldm_lightning.storage.hashing import hash_tensors
from ldm_lightning.utils.errors import CheckpointError, error_line

USED_OF_A_RUN = (
    "data",
    "features",
    "eval_crop",
    "train_crop",
    "trainer",
    "metrics",
    "loss.kl_weight",
)
"""Keys of a run's configuration that say how its first stage was measured."""

DESCRIPTION = {
    "autoencoder": MAPPING,
    "bottleneck": MAPPING,
    "image_channels": COUNT,
    "resolution": SIZE,
}
"""What a checkpoint says of its first stage."""


@dataclass(frozen=True)
class OpenedFirstStage:
    """An autoencoder as its checkpoint holds it, on the CPU in float32.

    Attributes:
        autoencoder: In eval mode.
        description: What it was rebuilt from.
        weights: ``ema`` or ``raw``: which weights it holds.
        validated_as: Stage under which its run's own validation logged these weights: ``val`` or
            ``val_raw``.
        weights_hash: SHA-256 of all its tensors.
        path: The checkpoint file.
        step: Generator updates it was trained for; None where the file does not say.
        trusted_packages: Of the user's own, which the run's configuration may name too.
    """

    autoencoder: Autoencoder
    description: dict[str, Any]
    weights: str
    validated_as: str
    weights_hash: str
    path: Path
    step: int | None
    trusted_packages: tuple[str, ...] = ()

    @property
    def run(self) -> Path | None:
        """The run folder it lies in; None where it lies in none."""
        folder = self.path.absolute().parent.parent
        return folder if (folder / "config.yaml").is_file() else None

    def run_config(self) -> DictConfig:
        """Configuration of its run, as far as it is used; empty where it lies in none.

        Raises:
            ValueError: If that builds what no file of ours and no trusted package holds, or holds
                interpolations.
        """
        if self.run is None:
            return OmegaConf.create({})
        return OmegaConf.create(
            read_config_keys(self.run, USED_OF_A_RUN, trusted=self.trusted_packages)
        )

    def frozen(self) -> FrozenFirstStage:
        """The same autoencoder for use by a second stage, its latents not normalized yet."""
        return FrozenFirstStage(
            self.autoencoder,
            LatentNormalizer.identity(self.autoencoder.latent_channels),
            weights_hash=self.weights_hash,
            path=self.path,
            weights=self.weights,
        )


def open_first_stage(
    checkpoint: str | Path, *, weights: str, trusted_packages: Collection[str] = ()
) -> OpenedFirstStage:
    """Rebuild the autoencoder of a ``.ckpt`` or a run folder, from that file alone.

    Args:
        checkpoint: The file, or a run folder: ``best.ckpt``, else ``last.ckpt``.
        weights: ``ema`` takes the moving average where there is one, else the raw weights; ``raw``
            takes the raw weights.
        trusted_packages: Of the user's own, whose classes and functions the file may name.

    Raises:
        ValueError: If it is missing, damaged, holds no first stage, names a part of a package that
            is not trusted, or does not fit itself.
    """
    path = find_checkpoint(checkpoint)
    content = load_checkpoint(path)
    description = _description(content, path)
    try:
        with torch.random.fork_rng(devices=[]):  # layers are initialized before they are loaded
            autoencoder = rebuild_autoencoder(description, trusted_packages=trusted_packages)
    except Exception as error:  # any type: constructors meet values they were not written for
        raise CheckpointError(
            f"checkpoint={path}: first_stage describes no autoencoder ({error_line(error)})."
        ) from error
    chosen = trained_weights(content, weights, path=path)
    load_strict(autoencoder, chosen.tensors, path)
    is_raw_of_two = chosen.kind == "raw" and "ema" in content
    return OpenedFirstStage(
        autoencoder=autoencoder.eval(),
        description=description,
        weights=chosen.kind,
        validated_as="val_raw" if is_raw_of_two else "val",
        weights_hash=hash_tensors(autoencoder.state_dict()),
        path=path,
        step=content.get("global_step"),
        trusted_packages=tuple(trusted_packages),
    )


def rebuild_autoencoder(
    stored: Mapping[str, Any], *, trusted_packages: Collection[str] = ()
) -> Autoencoder:
    """Build an autoencoder from a checkpoint's description, after checking its targets."""
    check_targets(stored, allowed=(*PART_PACKAGES, *trusted_packages))
    return build_autoencoder(stored)


def build_autoencoder(description: Mapping[str, Any]) -> Autoencoder:
    """Build an autoencoder from a description that is the user's own, or was checked."""
    return instantiate(
        description["autoencoder"], bottleneck=instantiate(description["bottleneck"])
    )


def _description(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The autoencoder's description inside a checkpoint."""
    if "second_stage" in content:
        raise ValueError(
            f"checkpoint={path} is a second stage, where a first one is expected. To measure it, "
            f"generate images (python -m ldm_lightning.sample checkpoint={path} output=SAMPLES "
            "num_samples=2000), then measure those: images=SAMPLES/images data=..."
        )
    if "first_stage" not in content:
        raise CheckpointError(
            f"checkpoint={path} holds no first stage; expected a checkpoint of ldm_lightning.train."
        )
    try:
        check(content["first_stage"], DESCRIPTION, "first_stage")
        check(content.get("global_step"), OrNone(COUNT), "global_step")
    except ValueError as error:
        raise CheckpointError(f"checkpoint={path} is damaged: {error}.") from error
    return dict(content["first_stage"])

"""The two stages of a training run: what each builds, and does before its first update."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from omegaconf import DictConfig

from ldm_lightning.autoencoder.linear_fit import sample_size
from ldm_lightning.builders.data import build_images, build_labeled_data, check_labels
from ldm_lightning.builders.first_stage import build_first_stage_module
from ldm_lightning.builders.second_stage import (
    build_frozen_first_stage,
    build_second_stage_module,
    fit_normalizer,
    resolve_condition,
)
from ldm_lightning.data.image_module import ImageDataModule
from ldm_lightning.data.module import MapDataModule
from ldm_lightning.evaluation.gate import run_gate
from ldm_lightning.metrics.features import FeatureSet
from ldm_lightning.module.autoencoder import AutoencoderModule
from ldm_lightning.module.diffusion import DiffusionModule
from ldm_lightning.module.updating import ManualOptimizationModule
from ldm_lightning.runs.run_folder import RunFolder


class Stage(Protocol):
    """Interface of a stage: all that differs between the two in a run.

    The last three methods do nothing where a stage does not define them.
    """

    def build_data(self, cfg: DictConfig, start: Path | None) -> MapDataModule:
        """Build the data.

        Args:
            cfg: The composed configuration.
            start: The checkpoint that the run starts or goes on from; None for new weights.
        """

    def build_module(
        self, cfg: DictConfig, data: MapDataModule, features: FeatureSet, *, num_devices: int
    ) -> ManualOptimizationModule:
        """Build what is trained, from files that can be read at once."""

    def continue_from(self, module: ManualOptimizationModule, content: Mapping[str, Any]) -> None:
        """Take from the checkpoint of a continued run what a new run measures."""
        return

    def judge(
        self,
        cfg: DictConfig,
        module: ManualOptimizationModule,
        data: MapDataModule,
        run_folder: RunFolder,
    ) -> None:
        """Refuse what is not worth training on; one process does it."""
        return

    def measure(
        self, cfg: DictConfig, module: ManualOptimizationModule, data: MapDataModule
    ) -> None:
        """Measure what a new run needs to know of its training data."""
        return


class FirstStage(Stage):
    """An autoencoder, trained on images."""

    def build_data(self, cfg: DictConfig, start: Path | None) -> MapDataModule:
        """Build the images; a first stage uses no labels."""
        return build_images(cfg)

    def build_module(
        self, cfg: DictConfig, data: MapDataModule, features: FeatureSet, *, num_devices: int
    ) -> ManualOptimizationModule:
        """Build autoencoder, losses and discriminator."""
        return build_first_stage_module(
            cfg, protocol=data.protocol("val"), num_devices=num_devices, features=features
        )

    def measure(
        self, cfg: DictConfig, module: ManualOptimizationModule, data: MapDataModule
    ) -> None:
        """Fit the linear maps that the autoencoder starts on, where it has them."""
        assert isinstance(module, AutoencoderModule)
        assert isinstance(data, ImageDataModule)
        if cfg.checkpoint is None and module.autoencoder.linear is not None:
            module.autoencoder.start_linearly(
                data.training_sample(sample_size(data.resolution)), seed=cfg.seed
            )


class SecondStage(Stage):
    """A diffusion model in the latent space of a frozen first stage."""

    def build_data(self, cfg: DictConfig, start: Path | None) -> MapDataModule:
        """Build the data, with the class ids of the checkpoint."""
        return build_labeled_data(cfg, start=start)

    def build_module(
        self, cfg: DictConfig, data: MapDataModule, features: FeatureSet, *, num_devices: int
    ) -> ManualOptimizationModule:
        """Build denoiser, conditioner and sampler; open the first stage."""
        check_labels(cfg, data)
        resolve_condition(cfg, num_classes=data.num_classes)
        return build_second_stage_module(
            cfg,
            data=data,
            first_stage=build_frozen_first_stage(cfg, data),
            features=features,
            num_devices=num_devices,
        )

    def continue_from(self, module: ManualOptimizationModule, content: Mapping[str, Any]) -> None:
        """Take the normalizer, and refuse another first stage than the checkpoint's."""
        assert isinstance(module, DiffusionModule)
        module.use_first_stage_of(content["second_stage"])

    def judge(
        self,
        cfg: DictConfig,
        module: ManualOptimizationModule,
        data: MapDataModule,
        run_folder: RunFolder,
    ) -> None:
        """Put the first stage through the gate."""
        assert isinstance(module, DiffusionModule)
        run_gate(
            cfg.gate,
            checkpoint=module.first_stage.path,
            weights=module.first_stage.weights,
            trusted_packages=cfg.trusted_packages,
            data=cfg.data if isinstance(data, ImageDataModule) else None,
            features=cfg.features,
            cache_dir=cfg.cache_dir,
            run_folder=run_folder,
        )

    def measure(
        self, cfg: DictConfig, module: ManualOptimizationModule, data: MapDataModule
    ) -> None:
        """Fit the normalizer to the latents, which may encode every training image."""
        assert isinstance(module, DiffusionModule)
        fit_normalizer(cfg, module.first_stage, data)


STAGES: Mapping[str, Stage] = {"first": FirstStage(), "second": SecondStage()}
"""Stage by the value of ``stage``."""

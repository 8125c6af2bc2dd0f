"""The data of a run; of a second stage with labels and classes that agree with its model."""

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from ldm_lightning.data.class_names import class_names_in
from ldm_lightning.data.image_module import ImageDataModule
from ldm_lightning.data.module import MapDataModule


def build_data(cfg: DictConfig) -> MapDataModule:
    """Build the data module, of images or latents; missing and empty folders are found here."""
    return instantiate(cfg.data)


def build_images(cfg: DictConfig) -> ImageDataModule:
    """Build a data module of images.

    Raises:
        ValueError: If ``data`` holds latents, or cannot be built.
    """
    data = build_data(cfg)
    if not isinstance(data, ImageDataModule):
        raise ValueError("Images are needed here, and data=latents holds none: give the images.")
    return data


def build_labeled_data(cfg: DictConfig, *, start: Path | None) -> MapDataModule:
    """Build the data of a second stage, with the class ids of the checkpoint it goes on from.

    Args:
        cfg: Is changed: ``data.classes`` where it is null and the checkpoint names its classes.
        start: The checkpoint that the run goes on from; None for a new model.

    Raises:
        ValueError: If the data cannot be built, or number their classes otherwise.
    """
    uses_classes = "num_classes" in cfg.conditioner
    names = class_names_in(start) if start is not None and uses_classes else None
    if names is not None and "classes" in cfg.data and cfg.data.classes is None:
        cfg.data.classes = names
    data = build_data(cfg)
    own = data.class_names
    if names is not None and own is not None and own != names:
        label = next(i for i in range(len(names) + 1) if names[i : i + 1] != own[i : i + 1])
        told = [repr(some[label]) if label < len(some) else "no class" for some in (names, own)]
        raise ValueError(
            f"checkpoint={start} numbers its classes otherwise than the data: {label} is {told[0]} "
            f"there and {told[1]} here. Leave data.classes out, or give the data it was trained on."
        )
    return data


def check_labels(cfg: DictConfig, data: MapDataModule) -> None:
    """Refuse images without labels, of either split, where the conditioner needs them.

    Raises:
        ValueError: Saying for how many and for which they are missing, or which label is too many.
    """
    if "num_classes" not in cfg.conditioner:
        return
    for split, dataset in (("training", data.train_dataset), ("validation", data.val_dataset)):
        if dataset.num_classes is None:
            gap = dataset.label_gap or "none has one"
            raise ValueError(
                f"conditioner=class_label needs images with labels, and not every {split} image "
                f"has one: {gap}. Use data with class folders or .cls entries, the same classes in "
                "both splits, or conditioner=none."
            )
    classes = cfg.conditioner.num_classes or data.num_classes
    if data.val_dataset.num_classes > classes:
        raise ValueError(
            f"The validation images have {data.val_dataset.num_classes} classes, labels 0 to "
            f"{data.val_dataset.num_classes - 1}, but {classes} are trained: give validation "
            "images of the classes that are trained on."
        )

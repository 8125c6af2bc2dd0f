"""Names of classes: where their order comes from, and which name was meant."""

import logging
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ldm_lightning.checkpoints.checkpoint import load_file
from ldm_lightning.checkpoints.contents import CLASSES, IfThere, check
from ldm_lightning.utils.errors import CheckpointError
from ldm_lightning.utils.launch import launched

log = logging.getLogger(__name__)

NUM_SHOWN = 10


def class_names_of(names: Sequence[str]) -> list[str] | None:
    """Sorted first folders of the names; None where an image lies in none or all lie in one."""
    if not all("/" in name for name in names):
        return None
    classes = sorted({name.split("/", 1)[0] for name in names})
    return classes if len(classes) > 1 else None


def check_class_names(classes: Sequence[str], names: Sequence[str], *, root: str) -> None:
    """Require that images lie in folders of given classes only.

    Args:
        classes: Names in the order of their ids.
        names: Paths of the images, relative to the root.
        root: For the message.

    Raises:
        ValueError: Naming a folder that is none of the classes, or a name that is given twice.
    """
    if repeated := sorted({name for name in classes if list(classes).count(name) > 1}):
        raise ValueError(f"data.classes names {repeated[0]!r} twice.")
    flat = next((name for name in names if "/" not in name), None)
    if flat is not None:
        raise ValueError(
            f"data.classes needs every image in the folder of its class, but {flat} lies directly "
            f"in data.root={root}."
        )
    unknown = sorted({name.split("/", 1)[0] for name in names} - set(classes))
    if unknown:
        raise ValueError(
            f"data.root={root} holds the class {unknown[0]!r}, which is none of the {len(classes)} "
            f"of data.classes{did_you_mean(unknown[0], classes)}. Move the folder away, or train "
            "anew without data.classes."
        )


def did_you_mean(name: str, names: Sequence[str]) -> str:
    """The names nearest to a wrong one, in brackets; nothing where none is near."""
    near = get_close_matches(name.lower(), [other.lower() for other in names], n=3)
    originals = [other for other in names if other.lower() in near]
    return f" (near: {shortened(originals)})" if originals else ""


def shortened(names: Sequence[str]) -> str:
    """Join names, of many the first few."""
    more = f" and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else ""
    return ", ".join(names[:NUM_SHOWN]) + more


def class_label(label: int, names: Sequence[str] | None) -> str:
    """Name of a class, or its id where it has none."""
    return str(label) if names is None or label >= len(names) else names[label]


def describe_classes(
    num_classes: int,
    *,
    num_known: int,
    names: Sequence[str] | None,
    without_images: Sequence[int],
) -> dict[str, Any]:
    """Plain description of a model's classes, for its checkpoint; says which have no image.

    Args:
        num_classes: Classes of the model.
        num_known: Classes of the data.
        names: Of the classes of the data by id, where they are known.
        without_images: Ids of those of which no image is trained on.
    """
    without = [*without_images, *range(num_known, num_classes)]
    if without and launched().is_first:
        log.warning(
            "%d of %d classes have no training image and are not sampled: %s.",
            len(without),
            num_classes,
            shortened([class_label(label, names) for label in without]),
        )
    return {"names": None if names is None else list(names), "without_images": without}


def trained_classes(stored: Mapping[str, Any], num_classes: int | None) -> tuple[int, ...] | None:
    """Ids of the classes of which a model has seen images; None for a model without classes.

    Args:
        stored: Description of a second stage.
        num_classes: Of its conditioner.
    """
    if num_classes is None:
        return None
    without = set((stored.get("classes") or {}).get("without_images", ()))
    return tuple(label for label in range(num_classes) if label not in without)


def class_names_in(path: Path) -> list[str] | None:
    """Names of the classes of a second stage in the order of their ids; None where not known.

    Raises:
        CheckpointError: If the file is missing or damaged.
    """
    stored = load_file(path, device="meta").get("second_stage")
    try:
        check(stored, {"classes": IfThere(CLASSES)}, "second_stage")
    except ValueError as error:
        raise CheckpointError(f"checkpoint={path} does not name its classes: {error}.") from error
    assert isinstance(stored, dict)  # as was checked
    return stored["classes"]["names"] if "classes" in stored else None

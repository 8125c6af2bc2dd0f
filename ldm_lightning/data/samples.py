"""Interface of data sets, samples, and their collation into batches."""

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from typing import Any, NotRequired, Protocol, Self, TypedDict

import torch
from torch import Tensor

from ldm_lightning.data.bad_files import BadFileLog
from ldm_lightning.data.order.sampling import SampleKey
from ldm_lightning.data.value_range import ValueRange
from ldm_lightning.utils.image import from_uint8


class Sample(TypedDict):
    """One image: uint8 [C, H, W], the name of its file, and what else is known about it."""

    image: Tensor
    key: str
    label: NotRequired[int]
    caption: NotRequired[str]


class MapDataset(Protocol):
    """A map-style data set of one split, prepared for training or for evaluation.

    ``digest`` says which samples they are: it changes with what their files hold, with their names
    and with their labels, and with nothing else. ``label_gap`` says why ``num_classes`` is None
    although some samples have labels; else it is empty.
    """

    split: str
    num_classes: int | None
    class_names: list[str] | None
    label_gap: str

    @property
    def windows_per_image(self) -> int:
        """Samples that are cut from each image; those of one image follow one another."""
        ...

    @property
    def bad_file_log(self) -> BadFileLog | None:
        """Record of files that could not be read; None where no file is read."""
        ...

    def __len__(self) -> int:
        """Samples of the split."""
        ...

    def __getitem__(self, key: SampleKey) -> Any:
        """Return a sample; None for one that is left out because its file cannot be read."""
        ...

    def key(self, index: int) -> str:
        """Name of a sample, unique within the data set and independent of where the data lie."""
        ...

    def class_counts(self) -> list[int] | None:
        """Samples of each class, where there are classes."""
        ...

    def digest(self) -> str:
        """Short hash of the set of samples, as it was at the first call.

        Reads every file that has not been read before; see ``utils.content``.
        """
        ...


class ImageDataset(MapDataset, Protocol):
    """A data set of images.

    ``data_name`` and ``root`` say where they come from, ``crop`` and ``value_range`` what is done
    to them, and ``identified_by`` what ``digest`` can tell apart.
    """

    data_name: str
    root: str
    identified_by: str
    crop: str
    resolution: tuple[int, int]
    image_channels: int
    value_range: ValueRange | None

    def __getitem__(self, key: SampleKey) -> Sample | None:
        """Return a sample; None for one that is left out because its file cannot be read."""
        ...

    def without_augmentation(self) -> "ImageDataset":
        """The same images in the same order, cut as for evaluation: always the same samples."""
        ...


class PlainImages(ABC):
    """Base of a data set whose images are at hand in their final size; see ``ImageDataset``.

    A subclass says how many images there are, what each shows, and what tells the set from others.

    Args:
        split: ``train`` or ``val``.
        resolution: Height and width.
        image_channels: Channels of the images.
        class_names: By label; None for images without labels.
    """

    data_name = "own"
    root = ""
    identified_by = "digest"
    crop = "none"
    windows_per_image = 1
    label_gap = ""
    value_range: ValueRange | None = None
    bad_file_log: BadFileLog | None = None

    def __init__(
        self,
        *,
        split: str,
        resolution: tuple[int, int],
        image_channels: int,
        class_names: list[str] | None = None,
    ) -> None:
        self.split = split
        self.resolution = resolution
        self.image_channels = image_channels
        self.class_names = class_names
        self.num_classes = None if class_names is None else len(class_names)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def image(self, index: int) -> Tensor:
        """The image of an index, uint8 [C, H, W]; always the same one."""

    def label(self, index: int) -> int:
        """Class of an image, where there are classes."""
        raise NotImplementedError(f"{type(self).__name__} has class names and needs a label().")

    @abstractmethod
    def digest(self) -> str:
        """Short text that changes with the images, their order and their labels."""

    def key(self, index: int) -> str:
        """Name of a sample."""
        return f"{self.data_name}/{self.split}/{index}"

    def __getitem__(self, key: SampleKey) -> Sample:
        sample = Sample(image=self.image(key.index), key=self.key(key.index))
        if self.num_classes is not None:
            sample["label"] = self.label(key.index)
        return sample

    def class_counts(self) -> list[int] | None:
        """Images of each class, where there are classes."""
        if self.num_classes is None:
            return None
        counts = Counter(map(self.label, range(len(self))))
        return [counts[label] for label in range(self.num_classes)]

    def without_augmentation(self) -> Self:
        """Itself: nothing is cut or mirrored."""
        return self


def image_facts(dataset: ImageDataset, indices: list[int]) -> dict[str, str | int | float]:
    """Describe what a figure on these samples was measured on; differs for other images.

    ``images`` is a hash of what their files hold, of their names and labels; ``identified_by`` says
    so, or names what is weaker about it. ``num_images``, and ``num_windows`` where several are cut
    from each image, count what was listed, also what turns out to be unreadable.
    """
    digest = dataset.digest()
    if len(indices) < len(dataset):
        digest = digest_of([digest, *map(dataset.key, indices)])
    height, width = dataset.resolution
    return {
        "data": dataset.data_name,
        "root": dataset.root,
        "split": dataset.split,
        **counted(len(indices), windows_per_image=dataset.windows_per_image),
        "resolution": f"{height}x{width}",
        "channels": dataset.image_channels,
        "value_range": str(dataset.value_range or "full"),
        "crop": dataset.crop,
        "images": digest,
        "identified_by": dataset.identified_by,
    }


def counted(num_samples: int, *, windows_per_image: int) -> dict[str, int]:
    """Say how many images samples are, and how many windows where they are windows of images."""
    if windows_per_image == 1:
        return {"num_images": num_samples}
    return {"num_windows": num_samples, "num_images": num_samples // windows_per_image}


def collate(samples: list[Sample | None]) -> dict[str, Any] | None:
    """Join samples to a batch; None where none of them could be read.

    Returns:
        ``image`` float32 in [-1, 1], [B, C, H, W]; ``key`` list of str; where every sample has one,
        ``label`` int64 [B] and ``caption`` list of str.
    """
    read = [sample for sample in samples if sample is not None]
    if not read:
        return None
    batch: dict[str, Any] = {
        "image": from_uint8(torch.stack([sample["image"] for sample in read])),
        "key": [sample["key"] for sample in read],
    }
    if all("label" in sample for sample in read):
        batch["label"] = torch.tensor([sample["label"] for sample in read])
    if all("caption" in sample for sample in read):
        batch["caption"] = [sample["caption"] for sample in read]
    return batch


def digest_of(parts: Iterable[str]) -> str:
    """Hash text parts to 16 hexadecimal digits."""
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(part.encode("utf-8", errors="surrogateescape"))
        hasher.update(b"\x1f")
    return hasher.hexdigest()[:16]

"""Images in tar shards, each read at its offset."""

import json
from itertools import pairwise

import numpy as np

from ldm_lightning.data.images.decoding import MAX_FILE_BYTES, UnreadableImageError
from ldm_lightning.data.order.shard_order import ShardShuffle
from ldm_lightning.data.shards.shard_set import ShardStore, file_name, sample_name
from ldm_lightning.data.shards.tar_index import NO_SPAN, TarSample
from ldm_lightning.storage.content import combined_hash
from ldm_lightning.storage.small_files import parse_json

MAX_CAPTION_BYTES = 2**20


class TarSource:
    """Images in tar shards by index, in the order of the shards.

    Args:
        samples: The images, shard by shard.
        store: Where the shards lie.
        root: What the user gave as root.
        split: Which split these images are.
        classes: Names of the classes by id; None takes ``classes.json`` beside the first shard.
    """

    data_name = "webdataset"

    def __init__(
        self,
        samples: list[TarSample],
        store: ShardStore,
        *,
        root: str,
        split: str,
        classes: list[str] | None = None,
    ) -> None:
        self.store = store
        self.root = root
        self.split = split
        labels = [sample.label for sample in samples if sample.label is not None]
        # A class is known for all images or counts for none, so that every batch looks the same.
        self.num_classes = max(labels) + 1 if len(labels) == len(samples) else None
        self.label_gap = _label_gap(samples, len(labels))
        self.class_names = _class_names(store, samples[0].shard, self.num_classes, classes)
        if self.class_names is not None:
            self.num_classes = len(self.class_names)
        # Arrays, because worker processes would each copy millions of small objects bit by bit.
        self.shards = list(dict.fromkeys(sample.shard for sample in samples))
        shard_numbers = {shard: number for number, shard in enumerate(self.shards)}
        self._keys = np.array([sample.key.encode() for sample in samples])
        self._shard_of = np.array([shard_numbers[sample.shard] for sample in samples])
        self._firsts = np.searchsorted(self._shard_of, range(len(self.shards) + 1))
        self._images = np.array([sample.image for sample in samples])  # [N, 2]: offset, size
        self._texts = np.array([sample.text or NO_SPAN for sample in samples])
        self._records = np.array([sample.record or NO_SPAN for sample in samples])
        self._labels = np.array([-1 if s.label is None else s.label for s in samples])
        self.identified_by = store.identified_by(self.shards)
        self._identity: str | None = None

    def __len__(self) -> int:
        return len(self._keys)

    def name(self, index: int) -> str:
        """Name of the shard's file and key of the sample."""
        return sample_name(self.shards[self._shard_of[index]], self._keys[index].decode())

    def identity(self) -> str:
        """Short hash of the shards' names and contents, of which samples these are, and of classes.

        A shard's content covers its samples' names, images, labels and captions.
        """
        if self._identity is None:
            names = [file_name(shard) for shard in self.shards]
            self._identity = combined_hash(
                json.dumps([names, self.num_classes, self.class_names]).encode(),
                *self.store.contents(self.shards),
                self._shard_of.astype("<i8").tobytes(),
                self._images.astype("<i8").tobytes(),
            )
        return self._identity

    def read(self, index: int) -> bytes:
        """Return the encoded image."""
        return self._read_span(index, self._images[index], max_bytes=MAX_FILE_BYTES)

    def annotations(self, index: int) -> tuple[int | None, str | None]:
        """Return the label, and the caption: the text member, or ``caption`` of the JSON member."""
        caption = None
        if self._texts[index, 0] >= 0:
            content = self._read_span(index, self._texts[index], max_bytes=MAX_CAPTION_BYTES)
            caption = content.decode("utf-8", "replace").strip()
        elif self._records[index, 0] >= 0:
            content = self._read_span(index, self._records[index], max_bytes=MAX_CAPTION_BYTES)
            caption = _caption_of(content, self.name(index))
        return (None if self.num_classes is None else int(self._labels[index])), caption

    def class_counts(self) -> list[int] | None:
        """Images of each class, where there are classes."""
        if self.num_classes is None:
            return None
        return np.bincount(self._labels, minlength=self.num_classes).tolist()

    def near(self, index: int) -> range:
        """Return the images of the same shard."""
        shard = self._shard_of[index]
        return range(int(self._firsts[shard]), int(self._firsts[shard + 1]))

    def shuffle(self, num_together: int) -> ShardShuffle:
        """Describe how to go through the shards, so many at a time."""
        return ShardShuffle(
            sizes=[int(end - first) for first, end in pairwise(self._firsts)],
            num_together=num_together,
            fetch_ahead=lambda numbers: self.store.fetch_ahead([self.shards[n] for n in numbers]),
            check_room=self.store.check_room,
        )

    def _read_span(self, index: int, span: np.ndarray, *, max_bytes: int) -> bytes:
        if span[1] > max_bytes:
            raise UnreadableImageError(
                f"Cannot read {self.name(index)}: a member of {int(span[1]):,} bytes is larger "
                f"than the limit of {max_bytes:,}."
            )
        with self.store.open(self.shards[self._shard_of[index]]) as file:
            file.seek(int(span[0]))
            return file.read(int(span[1]))


def _caption_of(content: bytes, name: str) -> str | None:
    caption = parse_json(content, dict, name=f"{name}.json").get("caption")
    return None if caption is None else str(caption)


def _label_gap(samples: list[TarSample], num_labeled: int) -> str:
    """Say how many samples have a label, and which has none; empty where all or none have one."""
    if num_labeled in (0, len(samples)):
        return ""
    lacking = next(sample for sample in samples if sample.label is None)
    return (
        f"{num_labeled} of {len(samples)} have a label; missing for "
        f"{sample_name(lacking.shard, lacking.key)}"
    )


def _class_names(
    store: ShardStore, shard: str, num_classes: int | None, classes: list[str] | None
) -> list[str] | None:
    """The given names, or those of ``classes.json``, a list beside the shards, where there is one.

    Raises:
        ValueError: If they are fewer than the labels of the images ask for.
    """
    if num_classes is None:
        return None
    names, source = classes, "data.classes"
    if names is None:
        content = store.read_beside(shard, "classes.json")
        if content is None:
            return None
        source = f"classes.json beside {shard}"
        names = parse_json(content, list, name=source)
    if not isinstance(names, list) or len(names) < num_classes:
        raise ValueError(
            f"{source} must be a list of at least {num_classes} class names, for the labels 0 to "
            f"{num_classes - 1}."
        )
    return [str(name) for name in names]

"""Lists what is in a tar shard by reading its headers.

Members belong to one sample where their names are equal up to the first dot of the file name:
``a.jpg``, ``a.cls``, ``a.seg.png``. Where a sample has no image of that very name, as with
``photo.1.jpg`` and ``photo.2.jpg``, each of its images is a sample.
"""

import posixpath
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple, Self

from ldm_lightning.data.images.formats import IMAGE_SUFFIXES, is_clutter, is_image_name, suffix_of
from ldm_lightning.data.left_out import LeftOut, suffix_reason

BLOCK_BYTES = 512  # a tar's headers begin at multiples of this
MAX_HEADER_BYTES = 1 << 20
MAX_LINKS = 40  # that lead from one to the next, as file systems allow
MAX_LABEL_BYTES = 64
MAX_CLASSES = 1_000_000
ANNOTATION_SUFFIXES = (".cls", ".txt", ".json")


class Span(NamedTuple):
    """Position of a member's content in its shard, in bytes."""

    offset: int
    size: int


NO_SPAN = Span(-1, 0)


class TarSample(NamedTuple):
    """One image of a shard and what belongs to it."""

    shard: str
    key: str
    image: Span
    label: int | None
    text: Span | None
    record: Span | None


@dataclass(frozen=True)
class ShardContent:
    """The images of one or more shards, in order, and what is not read."""

    samples: list[TarSample]
    left_out: LeftOut

    @classmethod
    def joined(cls, parts: Iterable[Self]) -> Self:
        """Join the contents of shards, in order."""
        whole = cls([], LeftOut())
        for part in parts:
            whole.samples.extend(part.samples)
            whole.left_out.update(part.left_out)
        return whole


def index_shard(file: BinaryIO, shard: str) -> ShardContent:
    """List the images of a shard, about 25 microseconds a member.

    Args:
        file: The shard, opened.
        shard: Its path or URL.

    Raises:
        ValueError: If the shard is damaged or compressed, or a class is not a whole number.
    """
    left_out = LeftOut()
    try:
        members = _members(file, shard, left_out)
    except Exception as err:  # tarfile raises nearly anything on damaged headers
        raise ValueError(
            f"The shard {shard} cannot be read: {str(err) or type(err).__name__}. Expected an "
            "uncompressed, complete tar; fetch it again or leave it out of data.root."
        ) from err
    images: dict[str, list[str]] = {}  # names by sample
    annotations: dict[str, Span] = {}  # by name, with the suffix in lower case
    for name in members:
        if is_image_name(name):
            images.setdefault(_sample_of(name), []).append(name)
        elif suffix_of(name) in ANNOTATION_SUFFIXES:
            annotations[_stem(name) + suffix_of(name)] = members[name]
        else:
            left_out.add(suffix_reason(suffix_of(name)), f"{shard}: {name}")
    samples, used = [], set[str]()
    for sample, names in images.items():
        chosen = _own_images(sample, names)
        for name in names:
            if name not in chosen.values():
                left_out.add("further images of a sample", f"{shard}: {name}")
        for key, name in chosen.items():
            found = {s: _annotation(annotations, key, sample, s) for s in ANNOTATION_SUFFIXES}
            used |= {path for path in found.values() if path is not None}
            label = found[".cls"]
            samples.append(
                TarSample(
                    shard,
                    key,
                    members[name],
                    None if label is None else _read_label(file, annotations[label], shard, label),
                    *(annotations.get(found[suffix] or "") for suffix in (".txt", ".json")),
                )
            )
    for name in annotations.keys() - used:
        left_out.add("labels and captions of no image", f"{shard}: {name}")
    return ShardContent(samples, left_out)


def _members(file: BinaryIO, shard: str, left_out: LeftOut) -> dict[str, Span]:
    """Positions of the regular files of a tar, by name, in order."""
    found: dict[str, Span | str] = {}  # a span, or for a link the name it leads to
    with tarfile.open(fileobj=_Headers(file), mode="r:") as tar:  # type: ignore[call-overload]
        for member in tar:
            name = member.name
            if member.size < 0:  # would lead back to the same header for ever
                raise tarfile.ReadError(f"{name} has {member.size} bytes")
            if member.isdir() or any(map(is_clutter, _parts(name))):
                continue
            if name in found:  # the later one counts, as where a tar is unpacked
                left_out.add("repeated names", f"{shard}: {name}")
            if member.issparse():
                left_out.add("sparse files", f"{shard}: {name}")
            elif member.isreg():
                found[name] = Span(member.offset_data, member.size)
            elif member.islnk():
                found[name] = member.linkname
            elif member.issym():
                found[name] = posixpath.join(posixpath.dirname(name), member.linkname)
            else:
                left_out.add("no regular files", f"{shard}: {name}")
        end = tar.offset
    _check_end(file, end)
    places = {posixpath.normpath(name): place for name, place in found.items()}
    members = {}
    for name, place in found.items():
        for _ in range(MAX_LINKS):
            if not isinstance(place, str):
                break
            place = places.get(posixpath.normpath(place), NO_SPAN)
        if isinstance(place, str) or place == NO_SPAN:
            left_out.add("broken links", f"{shard}: {name}")
        else:
            members[name] = place
    return members


class _Headers:
    """A tar of which only headers are read: one that says it is longer is damaged.

    Args:
        file: The tar.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek = file.seek
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        """Read the next bytes.

        Raises:
            ReadError: If they are more than a header has.
        """
        if size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"it holds a header of {size:,} bytes")
        return self._file.read(size)


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in (".", "..")]


def _stem(name: str) -> str:
    return name[: len(name) - len(suffix_of(name))]


def _sample_of(name: str) -> str:
    folder, _, file_name = name.rpartition("/")
    stem = file_name.partition(".")[0]
    return f"{folder}/{stem}" if folder else stem


def _own_images(sample: str, names: list[str]) -> dict[str, str]:
    """The names that are samples of their own, by key; of one key the first suffix counts."""
    plain = [name for name in names if _stem(name) == sample]
    chosen: dict[str, str] = {}
    for name in sorted(plain or names, key=lambda name: IMAGE_SUFFIXES.index(suffix_of(name))):
        chosen.setdefault(_stem(name), name)
    return {key: chosen[key] for key in dict.fromkeys(map(_stem, names)) if key in chosen}


def _annotation(annotations: Mapping[str, Span], key: str, sample: str, suffix: str) -> str | None:
    """Name of what belongs to an image, under its own name or that of the sample."""
    return next((p for p in (key + suffix, sample + suffix) if p in annotations), None)


def _check_end(file: BinaryIO, end: int) -> None:
    """Require the block of zeros that closes a tar: ``tarfile`` takes a torn header for the end."""
    file.seek(end)
    if file.read(BLOCK_BYTES) != bytes(BLOCK_BYTES):
        raise tarfile.ReadError(f"it breaks off after {end} bytes")


def _read_label(file: BinaryIO, span: Span, shard: str, name: str) -> int:
    file.seek(span.offset)
    content = file.read(min(span.size, MAX_LABEL_BYTES + 1))
    try:
        label = int(content)
    except ValueError as err:
        raise ValueError(
            f"{shard}: {name} holds {content[:20]!r}; expected a whole number."
        ) from err
    if not 0 <= label < MAX_CLASSES:
        raise ValueError(
            f"{shard}: {name} holds {content[:20]!r}; expected a class from 0 to {MAX_CLASSES - 1}."
        )
    return label

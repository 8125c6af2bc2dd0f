"""A made corpus of files that folders and tar shards may hold, and what must become of each."""

import io
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ldm_lightning.data.images.formats import FORMAT_OF_SUFFIX, IMAGE_SUFFIXES

READ, UNREADABLE, IGNORED = "read", "unreadable", "ignored"


@dataclass(frozen=True)
class Entry:
    """One file.

    Attributes:
        name: Path below the root.
        fate: READ; UNREADABLE: listed, and counted as damaged when it is read; IGNORED: neither
            listed nor counted; else the reason under which it is counted as not read.
        content: Of a regular file.
        link_to: Name of an earlier file, for a link.
        is_hard: Whether the link is a hard one.
        is_pipe: A named pipe.
    """

    name: str
    fate: str = READ
    content: bytes = b""
    link_to: str | None = None
    is_hard: bool = False
    is_pipe: bool = False


def encoded(format_: str, seed: int, **options) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    return written(Image.fromarray(pixels), format_, **options)


def written(image: Image.Image, format_: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def frames(format_: str) -> bytes:
    stills = [Image.new("RGB", (8, 8), (40 * n, 10, 10)) for n in range(3)]
    return written(stills[0], format_, save_all=True, append_images=stills[1:])


def corpus() -> list[Entry]:
    png = encoded("PNG", 0)
    gray = np.linspace(0, 4095, 64).astype(np.uint16).reshape(8, 8)
    entries = []
    for number, suffix in enumerate(IMAGE_SUFFIXES):
        content = encoded(FORMAT_OF_SUFFIX[suffix], number)
        entries.append(Entry(f"a/im_{number}{suffix}", content=content))
        entries.append(Entry(f"b/UPPER_{number}{suffix.upper()}", content=content))
    names = ["b/photo.1.png", "b/photo.2.png", "b/v1.0.final.jpg", "a/2020.01.01.webp", "b/x..png"]
    names += [
        "a/deep/er/nested.png",
        "b/ü 日本.png",
        "b/100%25 #1.png",
        "b/a b.png",
        "b/im.png.jpg",
    ]
    entries += [Entry(name, content=png) for name in names]
    for suffix in (".heic", ".svg", ".pdf", ".psd", ".npy", ".mp4", ".jp2", ".jxl", ".eps", ".raw"):
        entries.append(Entry(f"b/other{suffix}", f"suffix {suffix}", content=png))
    entries += [Entry(name, "no suffix", content=png) for name in ("a/IMG0001", "LICENSE")]
    for name in (
        *(".DS_Store", "Thumbs.db", "b/._photo.png", "b/.hidden.png", "desktop.ini"),
        *("@eaDir/im.jpg/THUMB.jpg", ".thumbnails/1.png", "__MACOSX/b/photo.png"),
    ):
        entries.append(Entry(name, IGNORED, content=png))
    entries += [
        Entry("b/hard.png", link_to="a/im_4.png", is_hard=True),
        Entry("b/soft.png", link_to="a/im_4.png"),
        Entry("b/twice.png", link_to="b/soft.png"),
        Entry("b/broken.png", "broken links", link_to="b/nowhere.png"),
        Entry("b/itself.png", "broken links", link_to="b/itself.png"),
        Entry("b/pipe.png", "no regular files", is_pipe=True),
    ]
    for name, content in {
        "empty.png": b"",
        "text.png": b"no image",
        "torn.png": png[:60],
        "script.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "float.tif": written(Image.fromarray(gray.astype(np.float32)), "TIFF"),
        "beyond.tif": written(Image.fromarray(gray.astype(np.int32) - 1000), "TIFF"),
    }.items():
        entries.append(Entry(f"b/{name}", UNREADABLE, content=content))
    for name, content in {
        "misnamed.jpg": png,
        "wide.png": written(Image.fromarray(gray), "PNG"),
        "wide.tif": written(Image.fromarray(gray), "TIFF"),
        "integer.tif": written(Image.fromarray(gray.astype(np.int32)), "TIFF"),
        "frames.gif": frames("GIF"),
        "frames.tiff": frames("TIFF"),
        "frames.webp": frames("WEBP"),
        "frames.png": frames("PNG"),
    }.items():
        stem, _, suffix = name.partition(".")
        entries.append(Entry(f"b/{stem}_{suffix}.{suffix}", content=content))
    return entries


def write_folder(entries: list[Entry], root: Path) -> Path:
    for entry in entries:
        path = root / entry.name
        path.parent.mkdir(parents=True, exist_ok=True)
        if entry.is_pipe:
            os.mkfifo(path)
        elif entry.is_hard:
            path.hardlink_to(root / entry.link_to)
        elif entry.link_to is not None:
            path.symlink_to(os.path.relpath(root / entry.link_to, path.parent))
        else:
            path.write_bytes(entry.content)
    return root


def write_tar(entries: list[Entry], path: Path) -> Path:
    with tarfile.open(path, "w") as shard:
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            if entry.is_pipe:
                info.type = tarfile.FIFOTYPE
            elif entry.is_hard:
                info.type, info.linkname = tarfile.LNKTYPE, entry.link_to
            elif entry.link_to is not None:
                info.type = tarfile.SYMTYPE
                info.linkname = os.path.relpath(entry.link_to, Path(entry.name).parent)
            else:
                info.size = len(entry.content)
            shard.addfile(info, io.BytesIO(entry.content))
    return path

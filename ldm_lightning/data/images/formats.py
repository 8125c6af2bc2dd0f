"""File formats of images: one table of suffixes for folders and tar shards, and what Pillow opens.

A suffix decides whether a file is listed. Its content decides how it is decoded, by any of the
formats here: a PNG that is called .jpg is read.
"""

from PIL import features

FORMAT_OF_SUFFIX = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".apng": "PNG",
    ".webp": "WEBP",
    ".avif": "AVIF",
    ".gif": "GIF",
    ".bmp": "BMP",
    ".dib": "DIB",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".pbm": "PPM",
    ".pnm": "PPM",
}
"""Pillow's name of the format, by lower-case suffix."""

# What builds of Pillow may lack, by format: AVIF came with Pillow 11.3.
_OPTIONAL_PARTS = {"WEBP": "webp", "AVIF": "avif"}

# Folders and files that file managers, archives and network disks put beside images.
_CLUTTER = frozenset(
    {
        "@eadir",
        "#recycle",
        "$recycle.bin",
        "__macosx",
        "desktop.ini",
        "ehthumbs.db",
        "system volume information",
        "thumbs.db",
    }
)


def _can_decode(format_: str) -> bool:
    part = _OPTIONAL_PARTS.get(format_)
    return part is None or (part in features.modules and bool(features.check_module(part)))


PILLOW_FORMATS = tuple(sorted({f for f in FORMAT_OF_SUFFIX.values() if _can_decode(f)}))
"""Formats that the installed Pillow decodes; nothing else is ever opened (``Image.open``)."""

IMAGE_SUFFIXES = tuple(s for s, format_ in FORMAT_OF_SUFFIX.items() if format_ in PILLOW_FORMATS)
"""Suffixes of the files that are read, lower-case, with the dot."""


def suffix_of(name: str) -> str:
    """Lower-case suffix with the dot; empty where the file's name has none."""
    stem, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return f".{suffix.lower()}" if stem and dot else ""


def is_image_name(name: str) -> bool:
    """Return whether a file of this name is read as an image."""
    return suffix_of(name) in IMAGE_SUFFIXES


def is_clutter(name: str) -> bool:
    """Return whether a part of a path is hidden, or made by a file manager."""
    return name.startswith(".") or name.lower() in _CLUTTER

"""Image files and tar shards made to harm their reader, or damaged, and what must become of each.

Files are a few kilobytes each, whatever they claim to hold.
"""

import gzip
import io
import struct
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

READ, UNREADABLE, REFUSED = "read", "unreadable", "refused"


@dataclass(frozen=True)
class Hostile:
    """One file.

    Attributes:
        name: Of the file.
        content: What it holds.
        fate: READ or UNREADABLE for an image; for a shard REFUSED, or READ where its damage is left
            to its images.
    """

    name: str
    content: bytes
    fate: str


def saved(image: Image.Image, format_: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def noise(height: int = 24, width: int = 20) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def chunk(kind: bytes, data: bytes, *, crc: int | None = None, length: int | None = None) -> bytes:
    check = zlib.crc32(kind + data) if crc is None else crc
    size = len(data) if length is None else length
    return struct.pack(">I", size) + kind + data + struct.pack(">I", check)


def png(width: int, height: int, *chunks: bytes, depth: int = 8, color: int = 0) -> bytes:
    """A PNG file with chunks of its own instead of those that its size needs."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


BOMB = zlib.compress(bytes(10**8), 1)
"""A hundred megabytes of zeros, compressed to half of one."""


GRAY_8 = chunk(b"IDAT", zlib.compress((b"\0" + bytes(8)) * 8))


def images() -> list[Hostile]:
    """All hostile image files."""
    return [
        *_long_ones(),
        *_png_files(),
        *_jpeg_files(),
        *_tiff_files(),
        *_other_formats(),
        *_cut_off(),
        *_no_images(),
    ]


def _long_ones() -> Iterator[Hostile]:
    for width, height in ((10_000, 1), (1, 10_000), (60_000, 1), (1, 60_000), (30_000, 2), (1, 1)):
        for mode in ("1", "RGB"):
            image = Image.new(mode, (width, height))
            yield Hostile(f"{width}x{height}_{mode}.png", saved(image, "PNG"), READ)
    yield Hostile("long.jpg", saved(Image.new("RGB", (65_000, 1)), "JPEG"), READ)
    yield Hostile("long.gif", saved(Image.new("P", (1, 65_000)), "GIF"), READ)
    yield Hostile("large_1_bit.png", saved(Image.new("1", (6000, 6000)), "PNG"), READ)


def _png_files() -> Iterator[Hostile]:
    for side in (65_535, 2**31 - 1, 20_000):
        yield Hostile(f"claims_{side}.png", png(side, side, GRAY_8), UNREADABLE)
    yield Hostile("no_width.png", png(0, 8, GRAY_8), UNREADABLE)
    yield Hostile("no_data.png", png(8, 8), UNREADABLE)
    yield Hostile("wrong_type.png", png(8, 8, GRAY_8, color=5), UNREADABLE)
    yield Hostile("wrong_depth.png", png(8, 8, GRAY_8, depth=3), UNREADABLE)
    yield Hostile("no_palette.png", png(8, 8, GRAY_8, color=3), READ)
    wrong = chunk(b"IDAT", GRAY_8[8:-4], crc=0)
    yield Hostile("wrong_checksum.png", png(8, 8, wrong), READ)
    yield Hostile("garbage.png", png(8, 8, chunk(b"IDAT", b"garbage" * 9)), UNREADABLE)
    endless = chunk(b"IDAT", GRAY_8[8:-4], length=2**31 - 1)
    yield Hostile("endless_chunk.png", png(8, 8, endless), READ)
    # More data than the image needs are not unpacked.
    yield Hostile("data_bomb.png", png(8, 8, chunk(b"IDAT", BOMB)), READ)
    yield Hostile("text_bomb.png", png(8, 8, chunk(b"zTXt", b"a\0\0" + BOMB), GRAY_8), UNREADABLE)
    text = chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB)
    yield Hostile("international_bomb.png", png(8, 8, text, GRAY_8), UNREADABLE)
    profile = chunk(b"iCCP", b"a\0\0" + BOMB)
    yield Hostile("profile_bomb.png", png(8, 8, profile, GRAY_8), UNREADABLE)
    many = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**6))) * 100
    yield Hostile("many_texts.png", png(8, 8, many, GRAY_8), UNREADABLE)
    frames = chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))
    yield Hostile("many_frames.png", png(8, 8, frames, GRAY_8), READ)


def _jpeg_files() -> Iterator[Hostile]:
    plain = saved(noise(), "JPEG")
    size = plain.index(b"\xff\xc0") + 5
    for height, width in ((65_500, 65_500), (0, 20), (20, 0)):
        data = plain[:size] + struct.pack(">HH", height, width) + plain[size + 4 :]
        yield Hostile(f"claims_{height}_{width}.jpg", data, UNREADABLE)
    progressive = saved(noise(), "JPEG", progressive=True)
    last = progressive.rfind(b"\xff\xda")
    scans = progressive[:-2] + progressive[last:-2] * 2000 + b"\xff\xd9"
    yield Hostile("scans.jpg", scans, UNREADABLE)
    yield Hostile("trailing.jpg", plain + b"\xff\xda" * 500, READ)
    yield Hostile("no_end.jpg", plain[:-2] + bytes(10), READ)
    table = plain.index(b"\xff\xdb")
    yield Hostile("no_tables.jpg", plain[:2] + plain[plain.index(b"\xff\xc0") :], UNREADABLE)
    yield Hostile("endless_table.jpg", plain[: table + 2] + b"\xff\xff" + plain[-9:], UNREADABLE)
    yield Hostile("starts_only.jpg", b"\xff\xd8\xff" * 2000, UNREADABLE)
    # Turned by a description whose directory leads back to itself.
    loop = b"Exif\0\0MM\0*\0\0\0\x08\0\1\x87\x69\0\4\0\0\0\1\0\0\0\x08\0\0\0\x08"
    yield Hostile("exif_loop.jpg", _with_segment(plain, 0xE1, loop), READ)
    count = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(30)
    yield Hostile("exif_count.jpg", _with_segment(plain, 0xE1, count), READ)
    pages = b"MPF\0MM\0*\0\0\0\x08\0\1\xb0\1\0\4\0\0\0\1\xff\xff\xff\xff\0\0\0\0"
    yield Hostile("pages.jpg", _with_segment(plain, 0xE2, pages), READ)


def _with_segment(jpeg: bytes, marker: int, data: bytes) -> bytes:
    return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data + jpeg[2:]


def tiff(*entries: tuple[int, int, int, int], then: int = 0, data: bytes = b"") -> bytes:
    """A little-endian TIFF file of one directory: (tag, type, count, value) each."""
    fields = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    header = b"II*\0" + struct.pack("<IH", 8, len(entries))
    return header + fields + struct.pack("<I", then) + data


def _tiff_files() -> Iterator[Hostile]:
    def gray(width: int, height: int, *, compression=1, counts=64, offset=200, **then) -> bytes:
        entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8)]
        entries += [(259, 3, 1, compression), (262, 3, 1, 1), (273, 4, 1, offset)]
        entries += [(277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, counts)]
        return tiff(*entries, data=bytes(300), **then)

    yield Hostile("plain.tif", gray(8, 8), READ)
    for side in (100_000, 2**32 - 1):
        yield Hostile(f"claims_{side}.tif", gray(side, side), UNREADABLE)
    yield Hostile("short.tif", gray(4000, 4000), UNREADABLE)
    yield Hostile("beyond.tif", gray(8, 8, offset=2**32 - 1), UNREADABLE)
    yield Hostile("loop.tif", gray(8, 8, then=8), READ)
    yield Hostile("unknown_compression.tif", gray(8, 8, compression=60_000), UNREADABLE)
    yield Hostile("no_deflate.tif", gray(8, 8, compression=8), UNREADABLE)
    yield Hostile("no_lzw.tif", gray(4000, 4000, compression=5), UNREADABLE)
    many = tiff((256, 4, 2**32 - 1, 8), (257, 4, 2**32 - 1, 8))
    yield Hostile("endless_tags.tif", many, UNREADABLE)
    yield Hostile("no_tags.tif", b"II*\0\x08\0\0\0\0\0\0\0\0\0", UNREADABLE)
    yield Hostile("no_directory.tif", b"II*\0\xff\xff\xff\xff", UNREADABLE)
    yield Hostile("large.tif", b"II+\0\x08\0\0\0" + b"\xff" * 64, UNREADABLE)
    zip_ = saved(Image.new("L", (9_000, 4_000)), "TIFF", compression="tiff_adobe_deflate")
    yield Hostile("deflated.tif", zip_, READ)


def _other_formats() -> Iterator[Hostile]:
    screen = b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0)
    frame = b"," + struct.pack("<HHHHB", 0, 0, 8, 8, 0) + b"\x08\x03\x00\x01\x02\x00;"
    yield Hostile("screen.gif", screen + frame, UNREADABLE)
    small = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0)
    outside = b"," + struct.pack("<HHHHB", 65_000, 65_000, 60_000, 60_000, 0)
    yield Hostile("outside.gif", small + outside + b"\x08\x03\x00\x01\x02\x00;", UNREADABLE)
    yield Hostile("no_frame.gif", small + b";", UNREADABLE)
    yield Hostile("comments.gif", small + b"!\xfe" + (b"\xff" + b"a" * 255) * 4000, UNREADABLE)
    bitmap = saved(noise(), "BMP")
    for name, place, value in (
        ("size", 18, struct.pack("<ii", 10**6, 10**6)),
        ("negative", 18, struct.pack("<i", -5)),
        ("bits", 28, struct.pack("<H", 3)),
        ("header", 14, struct.pack("<I", 9)),
        ("compression", 30, struct.pack("<I", 77)),
    ):
        data = bitmap[:place] + value + bitmap[place + len(value) :]
        yield Hostile(f"{name}.bmp", data, UNREADABLE)
    lines = bytes([255, 1]) * 100
    fields = struct.pack("<IiiHHIIiiII", 40, 5000, 5000, 1, 8, 1, 0, 0, 0, 1, 0)
    packed = b"BM" + struct.pack("<IHHI", 0, 0, 0, 58) + fields + bytes(4) + lines
    yield Hostile("packed.bmp", packed, UNREADABLE)
    for name, content in (
        ("size", b"P6 99999999 99999999 255\n"),
        ("negative", b"P6 -4 4 255\n" + bytes(48)),
        ("no_range", b"P6 4 4 0\n" + bytes(48)),
        ("range", b"P6 4 4 70000\n" + bytes(96)),
        ("short", b"P6 4000 4000 255\nabc"),
        ("comment", b"P6 #" + b"a" * 10**6),
        ("digits", b"P6 " + b"9" * 10**6 + b" 4 255\n"),
        ("words", b"P3 4 4 255\n" + b"1" * 10**6),
        ("letters", b"P3 4 4 255\nx y z"),
    ):
        yield Hostile(f"{name}.ppm", content, UNREADABLE)
    yield Hostile("floats.ppm", b"Pf 4 4 -1.0\n" + struct.pack("<16f", *range(16)), UNREADABLE)
    webp = saved(noise(), "WEBP")
    place = webp.index(b"VP8 ") + 14
    large = webp[:place] + b"\xff\x3f\xff\x3f" + webp[place + 4 :]
    yield Hostile("size.webp", large, UNREADABLE)
    yield Hostile("empty.webp", b"RIFF\xff\xff\xff\xffWEBPVP8X" + bytes(40), UNREADABLE)
    box = b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf"
    yield Hostile("box.avif", box + b"\xff" * 64, UNREADABLE)


def _cut_off() -> Iterator[Hostile]:
    formats = {"PNG": "png", "JPEG": "jpg", "GIF": "gif", "TIFF": "tif", "BMP": "bmp"}
    for format_, suffix in (formats | {"PPM": "ppm", "WEBP": "webp"}).items():
        data = saved(noise(), format_)
        for percent in (1, 50, 90):
            cut = data[: max(1, len(data) * percent // 100)]
            yield Hostile(f"cut_{percent}.{suffix}", cut, UNREADABLE)


def _no_images() -> Iterator[Hostile]:
    """Of formats that are not on the list, whatever they are called."""
    for format_ in ("EPS", "PDF", "ICO", "PCX", "TGA", "SGI", "DDS", "JPEG2000", "ICNS"):
        side = 32 if format_ == "ICNS" else 16
        data = saved(Image.new("RGB", (side, side)), format_)
        yield Hostile(f"is_{format_.lower()}.png", data, UNREADABLE)
    for name, content in (
        ("empty", b""),
        ("byte", b"\x89"),
        ("null", bytes(5000)),
        ("text", b"no image\n" * 100),
        ("page", b"<!doctype html><title>404</title>"),
        ("vector", b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"),
        ("postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(w) (r) file\n"),
        ("dos_postscript", b"\xc5\xd0\xd3\xc6" + bytes(28) + b"%!PS-Adobe-3.0 EPSF-3.0\n"),
        ("metafile", b"\xd7\xcd\xc6\x9a" + bytes(60)),
        ("photoshop", b"8BPS\0\1" + bytes(60)),
        ("fits", b"SIMPLE  =                    T".ljust(2880)),
        ("hdf5", b"\x89HDF\r\n\x1a\n" + bytes(60)),
        ("program", b"\x7fELF" + bytes(60)),
        ("pickle", b"\x80\x04cos\nsystem\n(S'touch was_run'\ntR."),
        ("compressed", gzip.compress(saved(noise(), "PNG"))),
    ):
        yield Hostile(f"{name}.png", content, UNREADABLE)


# Shards


def _member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, **facts) -> bytes:
    """Header and content of a member; ``facts`` replace what a header says."""
    info = tarfile.TarInfo(name)
    info.size, info.type = len(data), kind
    for fact, value in facts.items():
        setattr(info, fact, value)
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def shards() -> list[Hostile]:
    """All hostile tars. Those that are read hold one image, ``good.png``."""
    end = bytes(1024)
    good = _member("good.png", saved(noise(), "PNG"))
    long_name = _member("././@LongLink", b"a" * 300 + b"\0", tarfile.GNUTYPE_LONGNAME)
    attributes = _member("x", b"27 path=\xff\xfe", tarfile.XHDTYPE)
    read = {
        "two_ends": end + end,
        "outside": _member("../../../etc/passwd.txt", b"x") + end,
        "absolute": _member("/etc/shadow.txt", b"x") + end,
        "link_outside": _member("a.png", kind=tarfile.SYMTYPE, linkname="/etc/passwd") + end,
        "link_to_itself": _member("a.png", kind=tarfile.LNKTYPE, linkname="a.png") + end,
        "pipe": _member("a.png", kind=tarfile.FIFOTYPE) + end,
        "device": _member("a.png", kind=tarfile.CHRTYPE, devmajor=1, devminor=5) + end,
        "caption_alone": _member("b.txt", b"x" * 10**6) + end,
    }
    links = b"".join(
        _member(f"l{n}.png", kind=tarfile.SYMTYPE, linkname=f"l{n + 1}.png") for n in range(3000)
    )
    read["chain_of_links"] = links + end
    size_of = {"8_gb": 8**11 - 1, "2_to_the_60": 2**60, "negative": -512}
    refused = {
        "no_end": b"",
        "half_header": _member("a.png")[:300],
        "wrong_checksum": b"a.png".ljust(512, b"\1") + end,
        **{
            f"size_{name}": _member("a.png", b"x", size=size) + end
            for name, size in size_of.items()
        },
        "names_without_end": long_name * 3000 + end,
        "attributes_without_end": attributes * 3000 + end,
        "huge_name": _member("n", b"", tarfile.GNUTYPE_LONGNAME, size=8**11 - 1) + end,
        "huge_attributes": _member("n", b"", tarfile.XHDTYPE, size=8**11 - 1) + end,
        "wrong_attributes": _member("n", b"99999999 path=a", tarfile.XHDTYPE) + good[:512],
        "label_text": _member("good.cls", b"cat") + end,
        "label_negative": _member("good.cls", b"-1") + end,
        "label_huge": _member("good.cls", b"9" * 10**6) + end,
        "label_empty": _member("good.cls", b"") + end,
    }
    whole = good + end
    files = {
        **{f"{name}.tar": (good + rest, READ) for name, rest in read.items()},
        **{f"{name}.tar": (good + rest, REFUSED) for name, rest in refused.items()},
        "empty.tar": (b"", REFUSED),
        "null.tar": (end, REFUSED),  # a tar, without an image
        "compressed.tar": (gzip.compress(whole), REFUSED),
        "image.tar": (saved(noise(), "PNG"), REFUSED),
        "bomb.tar": (gzip.compress(bytes(10**7)), REFUSED),
    }
    return [Hostile(name, content, fate) for name, (content, fate) in files.items()]

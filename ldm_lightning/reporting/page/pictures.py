"""Originals and reconstructions pixel by pixel, and small copies of sample grids.

They are cut from the grids in a run's ``images/``: rows of input, reconstruction and error, tiles
enlarged by a whole factor with four white pixels around each.
"""

import base64
import hashlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ldm_lightning.reporting.page.runs import Run
from ldm_lightning.storage.files import open_regular

PADDING = 4
NUM_ROWS = 3
MIN_TILE = 96
"""As ``utils.image.save_grid`` draws them; that module needs torch, so a test compares the two."""

MAX_TILES = 8
MAX_TILE = 256
"""Larger images show their center, so that a pixel stays a pixel."""

MAX_BYTES = 12_000_000
"""Of all reconstructions of a page together, before base64 adds a third."""

MAX_GRID = 640
MAX_PIXELS = 80_000_000
"""A picture with more was not drawn by a run, and is not decoded."""

CANNOT_BE_READ = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What a picture that is being written, or is none, leads to."""


@dataclass(frozen=True)
class Reconstruction:
    """The reconstructions of one run, side by side, as a data URI."""

    run: Run
    strip: str


@dataclass(frozen=True)
class Comparison:
    """Runs that drew the same images.

    Attributes:
        originals: The images side by side, as a data URI.
        width: Of one, in pixels.
        height: Likewise.
        count: How many there are.
        is_cut: Whether only the center of each is there.
        reconstructions: One entry a run.
    """

    originals: str
    width: int
    height: int
    count: int
    is_cut: bool
    reconstructions: tuple[Reconstruction, ...]


@dataclass(frozen=True)
class Picture:
    """A small copy as a data URI, with its size in pixels."""

    content: str
    width: int
    height: int


@dataclass(frozen=True)
class SampleGrid:
    """Samples of a run beside their ceiling, which is None where the run drew none (B1)."""

    run: Run
    samples: Picture
    ceiling: Picture | None


@dataclass(frozen=True)
class _Tiles:
    """Content of one grid: inputs and reconstructions at their own size."""

    inputs: tuple[Image.Image, ...]
    outputs: tuple[Image.Image, ...]
    is_cut: bool


def compare_reconstructions(runs: Sequence[Run]) -> list[Comparison]:
    """Group runs by the images they reconstructed, the largest group first."""
    found: dict[str, list[tuple[Run, _Tiles]]] = {}
    for run in runs:
        tiles = _read_tiles(run)
        if tiles is not None:
            content = b"".join(tile.tobytes() for tile in tiles.inputs)
            size = str(tiles.inputs[0].size)
            found.setdefault(size + hashlib.sha256(content).hexdigest(), []).append((run, tiles))
    share = MAX_BYTES // max(1, sum(len(group) for group in found.values()))
    groups = sorted(found.values(), key=lambda group: -len(group))
    return [_compare(group, max_bytes=share) for group in groups]


def find_samples(runs: Sequence[Run]) -> list[SampleGrid]:
    """Small copies of every run's last samples, with the ceiling of the same run or chain.

    A chain's samples stand for those that its second stage drew while it was training.
    """
    grids = []
    with_samples = {
        run.folder for run in runs if os.path.isfile(run.folder / "samples" / "grid.png")
    }
    for run in runs:
        if run.folder.parent in with_samples:
            continue  # what a chain shows for its second stage
        samples = _first_small(
            run.folder / "samples" / "grid.png",  # of a chain
            run.folder / "grid.png",
            run.folder / "images" / "samples_latest.png",
        )
        if samples is not None:
            images = (run.folder / "images", run.folder / "second_stage" / "images")
            names = ("ceiling.png", "ceiling_latest.png")
            ceiling = _first_small(*(folder / name for folder in images for name in names))
            grids.append(SampleGrid(run, samples, ceiling))
    return grids


def _read_tiles(run: Run) -> _Tiles | None:
    """Cut a grid into its tiles; None where there is none, or it is of another make."""
    image = _open(run.folder / "images" / "reconstruction_latest.png")
    if image is None:
        return None
    for height, width in _sizes(run, image):
        factor = max(1, -(-MIN_TILE // width))
        across, down = width * factor + PADDING, height * factor + PADDING
        if image.height == NUM_ROWS * down + PADDING and image.width % across == PADDING:
            lefts = range(PADDING, image.width - PADDING, across)[:MAX_TILES]
            inputs, outputs = (
                tuple(
                    _native(image, left, PADDING + row * down, (width, height), factor)
                    for left in lefts
                )
                for row in (0, 1)
            )
            return _Tiles(inputs, outputs, is_cut=max(height, width) > MAX_TILE)
    return None


def _sizes(run: Run, image: Image.Image) -> Iterator[tuple[int, int]]:
    """Height and width that an image of the grid may have: as configured, or square."""
    configured = run.settings.get("resolution")
    numbers = [int(digits) for digits in re.findall(r"\d{1,5}", str(configured))]
    if numbers and len(numbers) <= 2 and min(numbers) > 0:
        yield numbers[0], numbers[-1]
    square = (image.height - PADDING) // NUM_ROWS - PADDING
    if square >= MIN_TILE:
        yield square, square


def _native(
    image: Image.Image, left: int, top: int, size: tuple[int, int], factor: int
) -> Image.Image:
    """One tile at its own width and height, or the center of it."""
    width, height = size
    tile = image.crop((left, top, left + factor * width, top + factor * height))
    tile = tile.resize(size, Image.Resampling.NEAREST)
    x, y = max(0, (width - MAX_TILE) // 2), max(0, (height - MAX_TILE) // 2)
    return tile.crop((x, y, min(width, x + MAX_TILE), min(height, y + MAX_TILE)))


def _compare(group: Sequence[tuple[Run, _Tiles]], *, max_bytes: int) -> Comparison:
    """Encode one group with as many images as its share of the page allows, and at least one."""
    strips = [(run, _png(_strip(tiles.outputs))) for run, tiles in group]
    count = len(group[0][1].inputs)
    largest = max(len(png) for _, png in strips)
    if largest > max_bytes:
        count = max(1, count * max_bytes // largest)
        strips = [(run, _png(_strip(tiles.outputs[:count]))) for run, tiles in group]
    first = group[0][1]
    return Comparison(
        originals=_data_uri(_png(_strip(first.inputs[:count])), "png"),
        width=first.inputs[0].width,
        height=first.inputs[0].height,
        count=count,
        is_cut=first.is_cut,
        reconstructions=tuple(Reconstruction(run, _data_uri(png, "png")) for run, png in strips),
    )


def _strip(tiles: Sequence[Image.Image]) -> Image.Image:
    """Tiles of one size side by side."""
    width, height = tiles[0].size
    strip = Image.new("RGB", (width * len(tiles), height))
    for index, tile in enumerate(tiles):
        strip.paste(tile, (index * width, 0))
    return strip


def _first_small(*paths: Path) -> Picture | None:
    """The first picture of several that can be read, small enough for a page."""
    for path in paths:
        image = _open(path)
        if image is not None:
            image.thumbnail((MAX_GRID, MAX_GRID), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            image.save(buffer, format="WEBP", quality=82)
            return Picture(_data_uri(buffer.getvalue(), "webp"), image.width, image.height)
    return None


def _open(path: Path) -> Image.Image | None:
    """A PNG in RGB, or None where there is none that can be read now.

    Other formats are refused whatever the file is called: for one of them Pillow starts a program.
    """
    try:
        with open_regular(path) as file, Image.open(file, formats=("PNG",)) as image:
            if image.width * image.height > MAX_PIXELS:
                return None
            return image.convert("RGB")
    except CANNOT_BE_READ:
        return None


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"

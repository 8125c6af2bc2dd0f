"""Which names are images, for folders and tar shards alike."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from ldm_lightning.data.images.formats import (
    FORMAT_OF_SUFFIX,
    IMAGE_SUFFIXES,
    PILLOW_FORMATS,
    is_clutter,
    is_image_name,
    suffix_of,
)


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_what_pillow_writes_under_a_suffix_is_of_the_format_of_the_table(suffix):
    buffer = BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(buffer, FORMAT_OF_SUFFIX[suffix])
    with Image.open(buffer, formats=PILLOW_FORMATS) as image:
        # Pillow keeps one decoder for both kinds of bitmap.
        assert image.format in {FORMAT_OF_SUFFIX[suffix], "BMP"}


def test_no_format_runs_another_program_or_reads_another_file():
    assert not set(PILLOW_FORMATS) & {"EPS", "PSD", "WMF", "PDF", "FITS", "GRIB", "HDF5", "BUFR"}


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("a/b.PNG", ".png"), ("b.c.JPeG", ".jpeg"), ("a.b/c", ""), ("c", ""), (".png", "")],
)
def test_the_suffix_is_what_follows_the_last_dot_of_the_file(name, suffix):
    assert suffix_of(name) == suffix
    assert is_image_name(name) == bool(suffix)


@pytest.mark.parametrize(
    "name",
    ["._a.png", ".DS_Store", "Thumbs.db", "@eaDir", ".thumbnails", "__MACOSX", "Desktop.ini"],
)
def test_what_file_managers_leave_is_clutter(name):
    assert is_clutter(name)
    assert not is_clutter(f"a{name}")

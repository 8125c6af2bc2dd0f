"""Gray values of more than 8 bits: scaled from the range that was given, in folders and shards."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ldm_lightning.data.images.decoding import UnreadableImageError, decode_image
from ldm_lightning.data.images.trial_reading import found_in_some
from ldm_lightning.data.value_range import ValueRange
from tests.data.images.corpus import frames, written
from tests.data.images.test_image_folder import data_module
from tests.data.shards.test_webdataset import data_module as shard_module
from tests.data.shards.test_webdataset import write_shard

MEDICAL = np.linspace(0, 4095, 205).astype(np.uint16).reshape(5, 41)


def gray(values, format_="PNG"):
    return written(Image.fromarray(values), format_)


def test_205_levels_of_12_bits_stay_205():
    data = gray(MEDICAL)
    assert len(np.unique(decode_image(data, channels=1))) < 18
    decoded = decode_image(data, channels=1, value_range=ValueRange(0, 4095))[0].numpy()
    assert len(np.unique(decoded)) == 205
    assert np.array_equal(decoded, np.rint(MEDICAL / 4095 * 255))


@pytest.mark.parametrize(
    ("format_", "dtype"),
    [("PNG", np.uint16), ("TIFF", np.uint16), ("TIFF", np.int32), ("TIFF", np.float32)],
)
def test_every_type_is_scaled_and_clipped(format_, dtype):
    values = np.array([[0, 100, 200, 300]], dtype=dtype)
    decoded = decode_image(gray(values, format_), channels=1, value_range=ValueRange(100, 200))
    assert decoded[0, 0].tolist() == [0, 0, 255, 255]


def test_negative_values_have_a_range_too():
    values = np.array([[-1024, 0, 3071]], dtype=np.int32)
    with pytest.raises(UnreadableImageError, match="data.value_range"):
        decode_image(gray(values, "TIFF"), channels=1)
    decoded = decode_image(gray(values, "TIFF"), channels=1, value_range=ValueRange(-1024, 3071))
    assert decoded[0, 0].tolist() == [0, 64, 255]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("value_range", [None, ValueRange(0, 1)])
def test_floating_point_values_need_a_range_and_must_be_finite(value, value_range):
    values = np.array([[0, value]], dtype=np.float32)
    with pytest.raises(UnreadableImageError):
        decode_image(gray(values, "TIFF"), channels=1, value_range=value_range)


@pytest.mark.parametrize("maximum", [1023, 4095, 65535])
def test_a_file_that_states_its_own_maximum_is_scaled_from_it(maximum):
    values = np.array([[0, maximum // 2, maximum]], dtype=">u2")
    data = f"P5 3 1 {maximum}\n".encode() + values.tobytes()
    assert decode_image(data, channels=1)[0, 0].tolist() == [0, 127, 255]
    half = ValueRange(0, maximum // 2)
    assert decode_image(data, channels=1, value_range=half)[0, 0].tolist() == [0, 255, 255]


@pytest.mark.parametrize("given", [[0], [5, 5], [4095, 0], "0-1", [0, float("inf")], ["0", "1"]])
def test_what_is_no_range_is_refused(given):
    with pytest.raises(ValueError, match="data.value_range"):
        ValueRange.of(given)


class Files:
    """Files in memory."""

    def __init__(self, files):
        self.files = list(files.items())

    def name(self, index):
        return self.files[index][0]

    def read(self, index):
        return self.files[index][1]

    def near(self, index):
        return range(len(self.files))


def test_a_small_part_of_the_range_is_told_with_the_numbers():
    (told,) = found_in_some(Files({"a.png": gray(MEDICAL), "b.png": b"damaged"}), None)
    assert "205" in told
    assert "0 to 4095" in told
    assert "data.value_range=[0,4095]" in told


@pytest.mark.parametrize(
    ("files", "value_range", "named"),
    [
        ({"a.png": gray(MEDICAL)}, ValueRange(0, 2000), "data.value_range=[0,2000]"),
        ({"a.png": gray(MEDICAL.astype(np.uint8))}, ValueRange(0, 9), "data.value_range=[0,9]"),
        ({"a.gif": frames("GIF")}, None, "a.gif (3 frames)"),
        ({"a.tif": frames("TIFF"), "b.png": gray(MEDICAL.astype(np.uint8))}, None, "a.tif (3"),
    ],
)
def test_clipping_useless_ranges_and_frames_are_told(files, value_range, named):
    (told,) = found_in_some(Files(files), value_range)
    assert named in told


@pytest.mark.parametrize(
    ("content", "value_range"),
    [
        (gray(MEDICAL), ValueRange(0, 4095)),
        (gray(np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)), None),
        (gray(MEDICAL.astype(np.uint8)), None),
    ],
)
def test_nothing_is_told_where_all_is_well(content, value_range):
    assert found_in_some(Files({"a.png": content}), value_range) == []


def test_folder_and_shards_scale_alike_and_say_so_in_the_protocol(tmp_path):
    for split in ("train", "val"):
        members = {}
        (tmp_path / split).mkdir()
        for number in range(4):
            values = np.roll(MEDICAL, number).reshape(5, 41)
            Image.fromarray(values).save(tmp_path / split / f"{number}.png")
            members[f"{number}.png"] = (tmp_path / split / f"{number}.png").read_bytes()
        write_shard(tmp_path / f"{split}.tar", members)
    settings = {"resolution": (5, 41), "image_channels": 1, "value_range": [0, 4095]}
    folder = data_module(tmp_path / "train", val_root=str(tmp_path / "val"), **settings)
    shards = shard_module(tmp_path / "train.tar", val_root=str(tmp_path / "val.tar"), **settings)
    images = [next(iter(m.val_dataloader()))["image"][:3] for m in (folder, shards)]
    assert images[0].equal(images[1])
    assert len(images[0][0].unique()) == 205
    assert folder.protocol("val")["value_range"] == "0 to 4095"
    assert shards.protocol("val")["value_range"] == "0 to 4095"


def wide_color_png() -> bytes:
    """One pixel of 16 bits a channel, which Pillow does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + struct.pack(">HHH", 0, 0x0FFF, 0xFFFF)))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


def test_of_colors_of_16_bits_the_upper_8_are_read_and_that_is_told():
    data = wide_color_png()
    assert decode_image(data, channels=3)[:, 0, 0].tolist() == [0, 15, 255]
    (told,) = found_in_some(Files({"a.png": data}), None)
    assert "a.png" in told
    with pytest.raises(UnreadableImageError, match="data.value_range"):
        decode_image(data, channels=3, value_range=ValueRange(0, 4095))

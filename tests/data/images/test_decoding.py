"""Decoding of every kind of file that the documentation names, each written here with Pillow."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from ldm_lightning.data.images import decoding
from ldm_lightning.data.images.decoding import MAX_PIXELS, UnreadableImageError, decode_image


def encode(image: Image.Image, format_: str, **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def smooth_rgb(height: int = 24, width: int = 40) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 6, y * 10, 255 - x * 6], axis=-1).astype(np.uint8)


@pytest.mark.parametrize(
    ("format_", "options"),
    [("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {}), ("PPM", {})],
)
def test_lossless_files_come_back_exactly(format_, options):
    pixels = smooth_rgb()
    decoded = decode_image(encode(Image.fromarray(pixels), format_, **options), channels=3)
    assert decoded.dtype == torch.uint8
    assert np.array_equal(decoded.permute(1, 2, 0).numpy(), pixels)


@pytest.mark.parametrize("format_", ["JPEG", "WEBP"])
def test_lossy_files_come_back_nearly(format_):
    pixels = smooth_rgb()
    decoded = decode_image(encode(Image.fromarray(pixels), format_, quality=95), channels=3)
    error = decoded.permute(1, 2, 0).numpy().astype(int) - pixels
    assert np.abs(error).mean() < 3


def test_gray_files_are_repeated_over_three_channels():
    gray = smooth_rgb()[..., 0]
    data = encode(Image.fromarray(gray), "PNG")
    three = decode_image(data, channels=3).numpy()
    assert np.array_equal(decode_image(data, channels=1).numpy()[0], gray)
    assert all(np.array_equal(channel, gray) for channel in three)


def test_one_channel_of_a_color_file_is_its_luma():
    pixels = smooth_rgb()
    luma = pixels @ np.array([0.299, 0.587, 0.114])
    decoded = decode_image(encode(Image.fromarray(pixels), "PNG"), channels=1)
    assert np.abs(decoded[0].numpy() - luma).max() <= 1


def test_a_black_and_white_file_becomes_0_and_255():
    bits = np.indices((8, 8)).sum(0) % 2 == 0
    decoded = decode_image(encode(Image.fromarray(bits), "PNG"), channels=1)
    assert np.array_equal(decoded[0].numpy(), bits * 255)


def palette_image() -> tuple[Image.Image, np.ndarray]:
    colors = np.array([[250, 10, 20], [0, 200, 90], [30, 40, 220]], dtype=np.uint8)
    indices = (np.indices((9, 12)).sum(0) % 3).astype(np.uint8)
    image = Image.new("P", (12, 9))
    image.putdata(indices.ravel().tolist())
    image.putpalette(colors.ravel().tolist())
    return image, colors[indices]


@pytest.mark.parametrize("format_", ["PNG", "GIF"])
def test_palette_files_get_the_colors_of_the_palette(format_):
    image, pixels = palette_image()
    decoded = decode_image(encode(image, format_), channels=3)
    assert np.array_equal(decoded.permute(1, 2, 0).numpy(), pixels)


@pytest.mark.parametrize("transparency", [0, bytes([0, 255, 255])])
def test_transparent_palette_entries_become_white(transparency):
    image, pixels = palette_image()
    decoded = decode_image(encode(image, "PNG", transparency=transparency), channels=3)
    expected = np.where((pixels == [250, 10, 20]).all(-1, keepdims=True), 255, pixels)
    assert np.array_equal(decoded.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("format_", ["PNG", "WEBP"])
def test_alpha_is_composited_over_white(format_):
    rgba = np.zeros((4, 4, 4), dtype=np.uint8)
    rgba[..., 0], rgba[..., 3] = 200, np.array([0, 51, 128, 255], dtype=np.uint8)
    options = {"lossless": True, "exact": True} if format_ == "WEBP" else {}
    decoded = decode_image(encode(Image.fromarray(rgba), format_, **options), channels=3)
    share = np.array([0, 51, 128, 255]) / 255
    expected = share * np.array([[200], [0], [0]]) + (1 - share) * 255  # [3, 4]
    assert np.abs(decoded.numpy() - expected[:, None]).max() <= 1


def test_gray_with_alpha_is_composited_over_white():
    pixels = np.zeros((4, 4, 2), dtype=np.uint8)
    pixels[:2, :, 1] = 255
    decoded = decode_image(encode(Image.fromarray(pixels), "PNG"), channels=1)
    assert decoded[0, :2].eq(0).all()
    assert decoded[0, 2:].eq(255).all()


def test_cmyk_becomes_rgb():
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # magenta and yellow ink: red
    decoded = decode_image(encode(cmyk, "JPEG", quality=95), channels=3).float().mean((1, 2))
    assert (decoded - torch.tensor([255.0, 0.0, 0.0])).abs().max() < 4


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
def test_16_bit_greys_are_scaled_not_clipped(format_, channels):
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    decoded = decode_image(encode(Image.fromarray(values), format_), channels=channels)
    assert np.array_equal(decoded[-1].numpy(), np.round(values / 257).astype(np.uint8))


def test_32_bit_integers_within_16_bits_are_scaled_and_others_refused():
    values = np.array([[0, 257], [25700, 65535]], dtype=np.int32)
    decoded = decode_image(encode(Image.fromarray(values), "TIFF"), channels=1)
    assert decoded[0].tolist() == [[0, 1], [100, 255]]
    with pytest.raises(UnreadableImageError, match="16-bit"):
        decode_image(encode(Image.fromarray(values * 2), "TIFF"), channels=1)


def test_floating_point_pixels_are_refused_with_a_reason():
    data = encode(Image.fromarray(np.zeros((4, 4), dtype=np.float32)), "TIFF")
    with pytest.raises(UnreadableImageError, match="floating-point"):
        decode_image(data, channels=3)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
def test_exif_rotation_is_applied(format_):
    pixels = smooth_rgb(16, 32)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    options = {"lossless": True} if format_ == "WEBP" else {}
    data = encode(Image.fromarray(pixels), format_, exif=exif, **options)
    decoded = decode_image(data, channels=3).permute(1, 2, 0).numpy()
    assert decoded.shape == (32, 16, 3)
    assert np.abs(decoded.astype(int) - np.rot90(pixels, -1)).mean() < 3


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_files_are_unreadable_and_named(tmp_path, format_, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), format_)
    path = tmp_path / "torn.img"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UnreadableImageError, match=r"torn\.img: ."):
        decode_image(path, channels=3)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\xff\xd8\xff"])
def test_other_files_are_unreadable(content):
    with pytest.raises(UnreadableImageError, match="a.tar/0.png"):
        decode_image(content, channels=3, name="a.tar/0.png")


def test_missing_files_are_unreadable(tmp_path):
    with pytest.raises(UnreadableImageError, match=r"gone\.jpg"):
        decode_image(tmp_path / "gone.jpg", channels=3)


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0"))


def test_a_decompression_bomb_is_refused_before_it_is_unpacked():
    with pytest.raises(UnreadableImageError, match="bomb|limit"):
        decode_image(png_that_claims(200_000, 200_000), channels=3)


def test_an_image_just_above_the_limit_is_refused():
    side = int(MAX_PIXELS**0.5) + 10
    with pytest.raises(UnreadableImageError, match="limit"):
        decode_image(png_that_claims(side, side), channels=3)


def test_other_numbers_of_channels_need_files_that_have_them():
    rgba = np.random.default_rng(0).integers(0, 256, (5, 6, 4), dtype=np.uint8)
    decoded = decode_image(encode(Image.fromarray(rgba), "PNG"), channels=4)
    assert np.array_equal(decoded.permute(1, 2, 0).numpy(), rgba)
    with pytest.raises(ValueError, match=r"\b3 channel.*image_channels=4\b") as error:
        decode_image(encode(Image.fromarray(rgba[..., :3]), "PNG"), channels=4)
    assert not isinstance(error.value, UnreadableImageError)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("channels", [1, 3])
def test_every_exif_orientation_is_pillows_own(orientation, channels):
    pixels = smooth_rgb(300, 17)  # more rows than are converted at once
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(pixels), "PNG", exif=exif)
    with Image.open(BytesIO(data)) as image:
        expected = np.array(ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB"))
    decoded = decode_image(data, channels=channels).permute(1, 2, 0)
    assert np.array_equal(decoded.squeeze(-1).numpy(), expected)
    assert decoded.is_contiguous()


@pytest.mark.parametrize(
    ("least_side", "expected"), [(None, (96, 160)), (100, (96, 160)), (48, (48, 80)), (1, (12, 20))]
)
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("channels", [1, 3])
def test_large_files_are_returned_at_a_fraction_that_suffices(
    monkeypatch, least_side, expected, format_, channels
):
    ramp = np.broadcast_to(np.arange(160, dtype=np.uint8)[:, None], (97, 160, 3))[:96]
    data = encode(Image.fromarray(np.ascontiguousarray(ramp)), format_, quality=100)
    whole = decode_image(data, channels=channels, least_side=least_side)
    assert whole.shape == (channels, 96, 160)
    monkeypatch.setattr(decoding, "MAX_ORDINARY_PIXELS", 96 * 160 - 1)
    small = decode_image(data, channels=channels, least_side=least_side)
    assert small.shape == (channels, *expected)
    step = 96 // expected[0]
    means = whole.float().unfold(1, step, step).unfold(2, step, step).mean((-1, -2))
    assert (small - means).abs().max() < 2.5


def test_a_small_jpeg_file_that_asks_for_thousands_of_passes_is_refused():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    data = encode(Image.fromarray(noise), "JPEG", progressive=True)
    last = data.rfind(b"\xff\xda")
    with pytest.raises(UnreadableImageError, match=str(decoding.MAX_SCANS)):
        decode_image(data[:-2] + data[last:-2] * 200 + data[-2:], channels=1)
    # What follows the end of the image is not looked at: phones append a film there.
    assert decode_image(data + b"\xff\xda" * 200, channels=1).shape == (1, 64, 64)


@pytest.mark.parametrize("format_", ["EPS", "PSD", "PDF", "ICO", "PCX", "TGA", "SGI"])
def test_formats_that_are_not_on_the_list_are_not_opened(format_, tmp_path):
    if format_ == "PSD":
        data = b"8BPS" + bytes(40)
    else:
        data = encode(Image.fromarray(smooth_rgb()), format_)
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with pytest.raises(UnreadableImageError, match=str(path)):
        decode_image(path, channels=3)

"""Untrusted bytes become the right array or one clear error."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.data.images import decode, decode_mask, encode_png, resize, resize_mask, with_channels
from pipeline.errors import InputError

PICTURE = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("channels", [1, 3])
def test_png_keeps_every_pixel(channels):
    array = PICTURE[..., :channels]
    np.testing.assert_array_equal(decode(encode_png(array), "x"), array)


@pytest.mark.parametrize("kind", ["PNG", "PPM", "BMP", "WEBP"])
def test_lossless_formats_are_read(kind):
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(PICTURE), kind, lossless=True), "x"), PICTURE)


@pytest.mark.parametrize(
    ("mode", "channels"), [("1", 1), ("L", 1), ("LA", 1), ("I;16", 1), ("P", 3), ("RGB", 3), ("RGBA", 3)]
)
def test_natural_channels(mode, channels):
    assert decode(encoded(Image.new(mode, (4, 2))), "x").shape == (2, 4, channels)


@pytest.mark.parametrize("channels", [1, 3])
def test_asked_for_channels(channels):
    for mode in ("L", "RGB", "RGBA", "P"):
        assert decode(encoded(Image.new(mode, (4, 2))), "x", channels=channels).shape == (2, 4, channels)


def test_transparent_is_white():
    assert (decode(encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 0))), "x") == 255).all()


def test_sixteen_bits_keep_the_high_byte():
    image = Image.fromarray(np.array([[0x1234, 0xFFFF]], np.uint16))
    np.testing.assert_array_equal(decode(encoded(image), "x")[..., 0], [[0x12, 0xFF]])


def test_every_flipped_byte_of_a_png_is_noticed():
    data = encode_png(PICTURE)
    for at in range(len(data)):
        broken = bytearray(data)
        broken[at] ^= 1 + at % 255
        with pytest.raises(InputError, match="photo"):
            decode(bytes(broken), "photo")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "PPM", "BMP", "WEBP", "GIF"])
def test_a_cut_off_image_is_noticed(kind):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    data = encoded(image, kind)
    for length in (0, 1, 7, len(data) // 4, len(data) // 2, len(data) - 200):
        with pytest.raises(InputError, match="photo"):
            decode(data[:length], "photo")


@pytest.mark.parametrize("data", [b"", b"hello", b"%PDF-1.4", b"<svg/>", b"\0" * 600, b"\x80\x04cos\nsystem\n."])
def test_what_is_no_image_is_refused(data):
    with pytest.raises(InputError, match="photo: not a whole image"):
        decode(data, "photo")


@pytest.mark.parametrize("size", [(50_000, 50_000), (10_000, 10_000), (2**31 - 1, 2**31 - 1)])
def test_a_huge_header_is_refused_before_any_pixel(size):
    header = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(InputError, match=f"photo: {size[0]} x {size[1]} is more than"):
        decode(data, "photo")
    with pytest.raises(InputError, match="pixels"):
        decode(b"P6 %d %d 255\n" % size, "photo")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_resize_keeps_a_constant_and_the_dtype(dtype):
    small = resize(np.full((12, 7, 2), 200, dtype), 5)
    assert small.shape == (5, 5, 2) and small.dtype == dtype
    np.testing.assert_allclose(small, 200, rtol=1e-6)


def test_resize_is_antialiased():
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))[..., None]
    assert abs(resize(stripes, 8)[2:-2, 2:-2].astype(int) - 127).max() < 10


def test_a_mask_keeps_its_values():
    mask = np.array([[0, 7], [200, 255]], np.uint8)
    np.testing.assert_array_equal(decode_mask(encode_png(mask), "x"), mask)
    assert set(np.unique(resize_mask(mask, 9))) == {0, 7, 200, 255}
    palette = Image.fromarray(mask)
    palette.putpalette(bytes(range(256)) * 3)
    np.testing.assert_array_equal(decode_mask(encoded(palette), "x"), mask)
    with pytest.raises(InputError, match="one channel"):
        decode_mask(encode_png(PICTURE), "x")


def test_channels_of_arrays():
    assert with_channels(PICTURE, 3, "x") is PICTURE
    assert with_channels(PICTURE[..., :1], 3, "x").shape == (9, 7, 3)
    np.testing.assert_array_equal(with_channels(PICTURE, 1, "x"), decode(encode_png(PICTURE), "x", channels=1))
    floats = with_channels(PICTURE / 255, 1, "x")
    assert np.abs(255 * floats - with_channels(PICTURE, 1, "x")).max() <= 1
    with pytest.raises(InputError, match="2 channels"):
        with_channels(PICTURE[..., :2], 3, "x")

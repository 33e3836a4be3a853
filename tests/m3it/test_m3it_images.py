"""Decoding pictures, whole and broken."""

import numpy as np
import pytest
from PIL import Image, ImageFile

from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it.images import decode_base64, decode_image, decode_pixels
from gitllm_plugin.m3it.problems import RowError
from tests.m3it_files import encode


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "LA", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(mode):
    image = Image.new("RGB", (4, 3), "white").convert(mode)
    decoded = decode_image(encode(image, "TIFF" if mode == "CMYK" else "PNG"), "x")
    assert (decoded.mode, decoded.size, decoded.getpixel((0, 0))) == ("RGB", (4, 3), (255, 255, 255))


def test_transparent_parts_become_white():
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))
    decoded = decode_image(encode(image), "x")
    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (10, 20, 30)]


def test_16_bit_grey_keeps_its_upper_bits():
    image = Image.fromarray(np.array([[0x1234, 0xFFFF]], dtype=np.uint16))
    decoded = decode_image(encode(image), "x")
    assert [decoded.getpixel((x, 0))[0] for x in (0, 1)] == [0x12, 0xFF]


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (16, 8))
    exif = image.getexif()
    exif[0x0112] = 6  # rotate by a quarter
    assert decode_image(encode(image, "JPEG", exif=exif), "x").size == (8, 16)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
@pytest.mark.parametrize("lenient", [False, True])
def test_truncated_image(file_format, lenient, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), file_format)
    for decode in (decode_image, decode_pixels):
        with pytest.raises(RowError, match="coco/7 at a.jsonl:7: the image is broken") as caught:
            decode(data[: len(data) // 2], "coco/7 at a.jsonl:7")
        assert caught.value.kind == "image_truncated"
    assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient


def test_not_an_image():
    with pytest.raises(DataError, match="x: 5 bytes that are no image .*b'hello'.*such as PNG or JPEG"):
        decode_image(b"hello", "x")


def test_not_base64():
    with pytest.raises(DataError, match="x: the image is not plain base64"):
        decode_base64("photo.jpg", "x")


def test_too_many_pixels():
    with pytest.raises(DataError, match="10 x 10 pixels, more than the 99 allowed"):
        decode_image(encode(Image.new("L", (10, 10))), "x", max_pixels=99)


def test_decompression_bomb():
    with pytest.raises(DataError, match="x: the image is too large"):
        decode_image(encode(Image.new("1", (20_000, 10_000))), "x")

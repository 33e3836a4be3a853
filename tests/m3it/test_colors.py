"""Every mode, depth and orientation that a picture file can have, against what it is known to show."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from gitllm_plugin.m3it.colors import eight_bits, rgb_pixels
from gitllm_plugin.m3it.images import decode_pixels
from gitllm_plugin.m3it.problems import RowError
from tests.m3it_files import encode

RAMP = np.linspace(0, 1, 256)[None].repeat(16, 0)
LEVELS = np.arange(256)[None].repeat(16, 0)
RAMP16 = (RAMP * 65535).astype(np.uint16)


def netpbm(kind: bytes, values: np.ndarray, most: int) -> bytes:
    return b"%s\n%d %d\n%d\n" % (kind, values.shape[1], values.shape[0], most) + values.tobytes()


def tiff(values: bytes, width: int, height: int, bits: int, photometric: int = 1, sample_format: int = 1) -> bytes:
    """An uncompressed grey TIFF of one strip, little-endian."""
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height}
    tags |= {279: len(values), 339: sample_format}
    padded = values + b"\0" * (len(values) % 2)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    head = b"II*\0" + struct.pack("<I", 8 + len(padded))
    return head + padded + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)


def packed12(values: np.ndarray) -> bytes:
    """Two values in three bytes."""
    first, second = values.reshape(-1, 2).T.astype(int)
    return np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1).astype(np.uint8).tobytes()


GREYS = {
    "png of 1 bit": encode(Image.fromarray(LEVELS >= 128)),
    "png of 16 bits": encode(Image.fromarray(RAMP16)),
    "tiff of 16 bits": encode(Image.fromarray(RAMP16), "TIFF"),
    "tiff of 16 bits, big-endian": encode(Image.fromarray(RAMP16.astype(">u2")), "TIFF"),
    "tiff of 16 bits, packed": encode(Image.fromarray(RAMP16), "TIFF", compression="tiff_lzw"),
    "tiff of 16 bits, white is 0": tiff((65535 - RAMP16).tobytes(), 256, 16, 16, photometric=0),
    "tiff of 12 bits": tiff(packed12(RAMP16 >> 4), 256, 16, 12),
    "tiff of int32 up to 255": encode(Image.fromarray(LEVELS.astype(np.int32)), "TIFF"),
    "tiff of int32 up to 65535": encode(Image.fromarray(RAMP16.astype(np.int32)), "TIFF"),
    "tiff of floats": encode(Image.fromarray(RAMP.astype(np.float32)), "TIFF"),
    "tiff of floats, white is 0": tiff((1 - RAMP).astype("<f4").tobytes(), 256, 16, 32, 0, 3),
    "pgm of 8 bits": netpbm(b"P5", LEVELS.astype(np.uint8), 255),
    "pgm of 16 bits": netpbm(b"P5", RAMP16.astype(">u2"), 65535),
    "pgm of 10 bits": netpbm(b"P5", (RAMP * 1023).astype(">u2"), 1023),
    "pgm of text": b"P2\n256 1\n4095\n" + b" ".join(b"%d" % value for value in (RAMP[0] * 4095).astype(int)),
    "pfm": b"Pf\n256 16\n-1.0\n" + RAMP.astype("<f4").tobytes(),
}


@pytest.mark.parametrize("name", GREYS)
def test_a_grey_ramp_of_any_depth_is_one(name):
    pixels = decode_pixels(GREYS[name])
    assert pixels.shape[1:] == (256, 3)
    assert (pixels[..., :1] == pixels).all()
    wanted = 255 * (LEVELS >= 128) if "1 bit" in name and "1 bits" not in name else LEVELS
    assert np.abs(pixels[..., 0].astype(int) - wanted[: len(pixels)]).max() <= 1


@pytest.mark.parametrize("dark", [0, 255])
def test_a_dark_pgm_of_16_bits_stays_dark(dark):
    """Its container is known to have 16 bits, however small its numbers are."""
    assert decode_pixels(netpbm(b"P5", np.full((4, 4), dark, ">u2"), 65535)).max() == 0


@pytest.mark.parametrize(
    "values, said",
    [
        (np.full((4, 4), -1, np.int32), "integers from -1 to -1"),
        (np.array([[0, 70_000]], np.int32), "integers from 0 to 70000"),
        (np.array([[0, 2.0]], np.float32), "floats from 0.0 to 2.0"),
        (np.array([[-0.5, 1]], np.float32), "floats from -0.5 to 1.0"),
        (np.array([[0, np.nan]], np.float32), "floats from nan"),
        (np.array([[0, np.inf]], np.float32), "floats from 0.0 to inf"),
    ],
)
def test_numbers_that_are_no_grey_are_refused(values, said):
    with pytest.raises(RowError, match=said) as caught:
        decode_pixels(encode(Image.fromarray(values), "TIFF"), "here")
    assert caught.value.kind == "image"


def rgb16(transparent: tuple[int, int, int] | None = None) -> bytes:
    """A PNG of 16 bits a channel, red, black and almost white, whose colour of the last is transparent or not."""
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    row = b"\0" + struct.pack(">9H", 65535, 0, 0, 0, 0, 0, 0xFE12, 0xFE13, 0xFE14)
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 1, 16, 2, 0, 0, 0))]
    parts += [chunk(b"tRNS", struct.pack(">3H", *transparent))] if transparent else []
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IDAT", zlib.compress(row)), chunk(b"IEND", b"")])


def test_16_bits_a_channel():
    assert decode_pixels(rgb16()).tolist() == [[[255, 0, 0], [0, 0, 0], [0xFE] * 3]]
    assert decode_pixels(rgb16((65535, 0, 0))).tolist() == [[[255] * 3, [0, 0, 0], [0xFE] * 3]]
    assert decode_pixels(rgb16((0, 0, 0))).tolist() == [[[255, 0, 0], [255] * 3, [0xFE] * 3]]


def see_through(mode: str) -> Image.Image:
    """Left half opaque teal (or a grey), right half see-through black."""
    picture = Image.new("RGBA", (8, 4), (0, 0, 0, 0))
    picture.paste((0, 128, 128, 255), (0, 0, 4, 4))
    if mode == "P":
        return picture.quantize(4)
    return picture.convert("LA") if mode == "LA" else picture


def with_transparent_color(mode: str, color) -> Image.Image:
    picture = Image.new(mode, (8, 4), color)
    picture.paste(1 if mode == "1" else (200 if mode == "L" else (200, 10, 10)), (0, 0, 4, 4))
    picture.info["transparency"] = color
    return picture


TRANSPARENT = {
    "rgba png": encode(see_through("RGBA")),
    "rgba webp": encode(see_through("RGBA"), "WEBP", lossless=True, exact=True),
    "rgba tiff": encode(see_through("RGBA"), "TIFF"),
    "rgba avif": encode(see_through("RGBA"), "AVIF", quality=100, subsampling="4:4:4"),
    "grey with alpha": encode(see_through("LA")),
    "palette with alpha": encode(see_through("P")),
    "gif": encode(see_through("RGBA"), "GIF"),
    "a colour of rgb": encode(with_transparent_color("RGB", (0, 0, 0)), transparency=(0, 0, 0)),
    "a grey": encode(with_transparent_color("L", 0), transparency=0),
    "a bit": encode(with_transparent_color("1", 0), transparency=0),
    "a grey of 16 bits": encode(
        Image.fromarray(np.tile(np.repeat([51400, 0], 4), (4, 1)).astype(np.uint16)), transparency=0
    ),
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_what_is_transparent_is_white(name):
    pixels = decode_pixels(TRANSPARENT[name])
    assert (pixels[:, 5:] == 255).all()
    assert pixels[:, :3].min() < 210 or name == "a bit"


def test_half_transparent_is_half_white():
    grey = Image.new("LA", (2, 2), (0, 128))
    premultiplied = Image.new("RGBa", (2, 2), (0, 0, 0, 128))
    for picture in (Image.new("RGBA", (2, 2), (0, 0, 0, 128)), grey, premultiplied, Image.new("La", (2, 2), (0, 128))):
        assert abs(int(rgb_pixels(picture)[0, 0, 0]) - 127) <= 1, picture.mode


@pytest.mark.parametrize("mode", ["RGB", "P", "PA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"])
def test_colours_of_other_spaces(mode):
    teal = Image.new("RGB", (6, 5), (20, 120, 130))
    if mode == "LAB":
        made = ImageCms.profileToProfile(
            teal, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
    else:
        made = teal.convert("P").convert("PA") if mode == "PA" else teal.convert(mode)
    off = 40 if mode in ("P", "PA") else 3  # a palette of the web's colours
    assert np.abs(rgb_pixels(made).astype(int) - (20, 120, 130)).max() <= off
    if mode == "LAB":
        assert np.abs(decode_pixels(encode(made, "TIFF")).astype(int) - (20, 120, 130)).max() <= off


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_files_whose_ink_is_counted_either_way(kind):
    """Adobe's JPEG, which is what Pillow writes, holds 255 for no ink; TIFF 0."""
    picture = Image.new("RGB", (16, 16), (250, 30, 40)).convert("CMYK")
    assert np.abs(decode_pixels(encode(picture, kind)).astype(int) - (250, 30, 40)).max() <= 8


ORIENTED = np.zeros((4, 6, 3), np.uint8)
ORIENTED[0, 0] = 255  # the first pixel is white, the others are black


def where_white(pixels: np.ndarray) -> tuple[int, ...]:
    return tuple(int(place) for place in np.unravel_index(pixels[..., 0].argmax(), pixels.shape[:2]))


# EXIF's table: where the first row and the first column are shown.
SHOWN = {1: (0, 0), 2: (0, 5), 3: (3, 5), 4: (3, 0), 5: (0, 0), 6: (0, 3), 7: (5, 3), 8: (5, 0)}


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_orientation_of_every_format_and_of_opened_pictures(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(Image.fromarray(ORIENTED), kind, exif=exif, **options)
    decoded = decode_pixels(data)
    assert where_white(decoded) == SHOWN[orientation]
    assert decoded.shape[:2] == ((6, 4) if orientation > 4 else (4, 6))
    opened = Image.open(io.BytesIO(data))
    assert np.array_equal(rgb_pixels(opened), decoded)
    assert np.array_equal(rgb_pixels(opened), decoded)  # looking at it twice turns it once
    if kind != "TIFF":  # which Pillow turns itself when it is loaded
        assert np.array_equal(rgb_pixels(Image.open(io.BytesIO(data)).convert("RGB")), decoded)


def test_icc_profiles_are_left_as_they_are():
    picture = Image.new("RGB", (4, 4), (10, 200, 90))
    swapped = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(decode_pixels(encode(picture, icc_profile=swapped)), decode_pixels(encode(picture)))


@pytest.mark.parametrize(
    "values, wanted",
    [
        ([True, False], [255, 0]),
        (np.array([0, 255, 256, 65535], np.uint16), [0, 0, 1, 255]),
        (np.array([0, 255], np.int64), [0, 255]),
        (np.array([0, 65535], np.int64), [0, 255]),
        (np.array([0, 0.5, 1], np.float16), [0, 128, 255]),
        (np.array([-1e-7, 1 + 1e-7]), [0, 255]),
        (np.arange(256) / 255, list(range(256))),
    ],
)
def test_scaling_to_eight_bits(values, wanted):
    levels = eight_bits(np.asarray(values))
    assert (levels.dtype, levels.tolist()) == (np.uint8, wanted)

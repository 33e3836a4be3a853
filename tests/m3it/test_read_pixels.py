"""The same pixels of a picture, in whatever form a person has it; and what is refused."""

import io
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it.images import FORMATS, SUFFIXES, check_header, decode_image, decode_pixels, prepare_image
from gitllm_plugin.m3it.pictures import as_pictures, open_picture, read_pixels
from gitllm_plugin.m3it.problems import RowError
from tests.m3it_files import encode
from tests.photos import open_photo

PHOTO = open_photo(48, 36)
RGB = np.array(PHOTO)
PNG = encode(PHOTO)
TENSOR = torch.from_numpy(RGB).permute(2, 0, 1)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photo.png").write_bytes(PNG)
    return tmp_path


FORMS = {
    "bytes": lambda folder: PNG,
    "a view of bytes": lambda folder: memoryview(PNG),
    "a path": lambda folder: folder / "photo.png",
    "a path as text": lambda folder: str(folder / "photo.png"),
    "an open file": lambda folder: open(folder / "photo.png", "rb"),  # noqa: SIM115 - it is read once
    "a file that was written just now": lambda folder: _written(),
    "a picture that is opened": lambda folder: Image.open(folder / "photo.png"),
    "a picture in memory": lambda folder: PHOTO,
    "uint8 [H, W, 3]": lambda folder: RGB,
    "uint8 [3, H, W]": lambda folder: RGB.transpose(2, 0, 1),
    "uint8, upside down and back": lambda folder: RGB[::-1].copy()[::-1],
    "uint8 that is not to be written to": lambda folder: _locked(RGB),
    "uint8 with alpha": lambda folder: np.dstack([RGB, np.full((36, 48), 255, np.uint8)]),
    "uint16": lambda folder: RGB.astype(np.uint16) * 257,
    "int64": lambda folder: RGB.astype(np.int64),
    "float32": lambda folder: (RGB / 255).astype(np.float32),
    "float64 [3, H, W]": lambda folder: RGB.transpose(2, 0, 1) / 255,
    "a tensor": lambda folder: TENSOR,
    "a tensor [H, W, 3]": lambda folder: torch.from_numpy(RGB),
    "a tensor of floats": lambda folder: TENSOR / 255,
    "a tensor that needs a gradient": lambda folder: (TENSOR / 255).requires_grad_(),
}


def _written() -> io.BytesIO:
    file = io.BytesIO()
    PHOTO.save(file, "PNG")
    return file


def _locked(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("form", FORMS)
def test_the_same_pixels_in_every_form(form, folder):
    pixels = read_pixels(FORMS[form](folder))
    assert (pixels.dtype, pixels.flags.c_contiguous, pixels.flags.writeable) == (np.uint8, True, True)
    assert np.array_equal(pixels, RGB)
    before = RGB.copy()
    pixels[:] = 0
    assert np.array_equal(RGB, before)


def test_bfloat16_has_eight_bits_of_its_own():
    assert np.abs(read_pixels((TENSOR / 255).bfloat16()).astype(int) - RGB).max() <= 1


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 1), (1, 20, 30)])
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16, np.float32])
def test_grey_arrays(shape, dtype):
    grey = np.zeros(shape, dtype)
    pixels = read_pixels(grey)
    assert (pixels.shape, pixels.max()) == ((20, 30, 3), 0)
    white = {bool: True, np.uint8: 255, np.uint16: 65535, np.float32: 1.0}[dtype]
    assert read_pixels(np.full(shape, white, dtype)).min() == 255


@pytest.mark.parametrize("shape", [(1, 20, 3), (20, 1, 3), (1, 20, 4), (3, 1, 20), (3, 20, 1), (1, 1, 3), (5, 3, 3)])
def test_pictures_a_pixel_wide_or_high(shape):
    channels_first = shape[0] == 3
    assert read_pixels(np.zeros(shape, np.uint8)).shape == ((*shape[1:], 3) if channels_first else (*shape[:2], 3))


@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000)])
def test_strips_are_read(size):
    assert read_pixels(np.zeros((*size, 3), np.uint8)).shape == (*size, 3)
    assert read_pixels(encode(Image.new("L", size))).shape == (*size[::-1], 3)
    assert read_pixels(Image.new("RGB", size)).shape == (*size[::-1], 3)


REFUSED = {
    "none": (None, "NoneType is no picture; give a path"),
    "a number": (3, "int is no picture"),
    "several": ([PHOTO, PHOTO], "list is no picture"),
    "a file as text": (io.StringIO("x"), "opened as text; open it with mode 'rb'"),
    "no such file": ("nowhere.png", "nowhere.png: cannot be read .No such file"),
    "a folder": ("/", "cannot be read .Is a directory"),
    "an address": ("https://example.org/cat.jpg", "pictures are not fetched: download it"),
    "a name that none can be": ("a\0b", "cannot be read"),
    "a very long name": ("x" * 5000, "x{200}: cannot be read"),
    "two channels": (np.zeros((5, 6, 2), np.uint8), r"uint8 \[5, 6, 2\] is no picture"),
    "a batch": (np.zeros((2, 5, 6, 3), np.uint8), "is no picture"),
    "a line": (np.zeros(7, np.uint8), r"uint8 \[7\] is no picture"),
    "a scalar": (np.float32(1), r"float32 \[\] is no picture"),
    "channels first or last": (np.zeros((3, 20, 3), np.uint8), "may have its channels first or last; give a PIL image"),
    "one channel, which": (np.zeros((1, 20, 1), np.uint8), "may have its channels first or last"),
    "empty": (np.zeros((0, 20, 3), np.uint8), "the image has 20 x 0 pixels: none"),
    "an empty picture": (Image.new("RGB", (0, 7)), "the image has 0 x 7 pixels: none"),
    "no name": ("", "the picture's name '' is empty; name a picture file"),
    "a name of spaces": ("  ", "the picture's name '  ' is empty"),
    "a file with nothing in it": (io.BytesIO(), "nothing is in it; expected are the bytes of a picture's file"),
    "empty grey": (np.zeros((0, 0)), "0 x 0 pixels: none"),
    "negative": (np.full((5, 6), -1), "integers from -1 to -1; expected 0 to 255"),
    "too large numbers": (np.full((5, 6), 10**6), "integers from 1000000 to 1000000"),
    "floats up to 255": (RGB.astype(float), "floats from 0.0 to 255.0; 0 is black and 1 is white"),
    "normalised": (torch.full((3, 5, 6), -1.5), "floats from -1.5 to -1.5"),
    "not a number": (np.full((5, 6, 3), np.nan), "floats from nan to nan"),
    "complex": (np.zeros((5, 6), complex), "complex128 are no levels of brightness"),
    "objects": (np.full((5, 6), None), "object are no levels of brightness"),
    "letters": (np.full((5, 6), "a"), "are no levels of brightness"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_picture_is_refused_in_words(name):
    picture, said = REFUSED[name]
    with pytest.raises(DataError, match=said):
        read_pixels(picture)


def test_too_large_ones_in_every_form(folder):
    for form in ("bytes", "a path", "a picture in memory", "uint8 [H, W, 3]", "a tensor"):
        with pytest.raises(RowError, match="48 x 36 pixels, more than the 1,000 allowed"):
            read_pixels(FORMS[form](folder), max_pixels=1000)


def test_one_picture_or_several():
    for one in (PHOTO, PNG, "a.png", RGB, TENSOR):
        assert len(as_pictures(one)) == 1
    for several in ([PHOTO, PNG], (PHOTO, RGB), np.stack([RGB, RGB]), torch.stack([TENSOR, TENSOR])):
        assert len(as_pictures(several)) == 2
    assert as_pictures([]) == []


def test_opened_as_pillow_does_it_but_for_what_is_beside_the_pixels():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encode(PHOTO, exif=exif)
    for picture in (open_picture(turned), decode_image(turned)):
        assert (picture.mode, picture.size, picture.info, dict(picture.getexif())) == ("RGB", (36, 48), {}, {})


# ------------------------------------------------------------------ files


def test_every_format_is_decoded_and_its_files_are_found():
    for name, suffixes in FORMATS.items():
        data = encode(PHOTO, name, **({"lossless": True} if name == "WEBP" else {}))
        assert np.abs(decode_pixels(data).astype(int) - RGB).mean() < 12, name
        assert set(suffixes) <= set(SUFFIXES)


def test_the_first_of_several_pictures_in_a_file():
    black = Image.new("RGB", PHOTO.size)
    for name in ("GIF", "TIFF", "WEBP", "MPO", "PNG"):
        pixels = decode_pixels(encode(PHOTO, name, save_all=True, append_images=[black]))
        assert np.abs(pixels.astype(int) - RGB).mean() < 12, name


def test_programs_are_not_run_whatever_they_are_called(tmp_path, monkeypatch):
    """Each of these Pillow would open, some by starting another program."""
    started = []
    for name in ("Popen", "run", "check_call", "check_output"):
        monkeypatch.setattr(subprocess, name, lambda *args, **kwargs: started.append(args))
    monkeypatch.setattr(shutil, "which", lambda name, *args: f"/usr/bin/{name}")
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    others = {
        "eps": program,
        "eps in a box": b"\xc5\xd0\xd3\xc6" + struct.pack("<6I", 30, len(program), 0, 0, 0, 0) + b"\xff\xff" + program,
        "wmf": b"\xd7\xcd\xc6\x9a\0\0" + struct.pack("<4hH", 0, 0, 9, 9, 72) + bytes(6) + b"\1\0\x09\0" + bytes(60),
        "fits": b"SIMPLE  =                    T".ljust(2880),
        "pdf": encode(PHOTO, "PDF"),
        "ico": encode(PHOTO, "ICO"),
        "tga": encode(PHOTO, "TGA"),
        "pcx": encode(PHOTO, "PCX"),
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    }
    for name, data in others.items():
        (tmp_path / f"{name}.png").write_bytes(data)
        for read in (decode_pixels, check_header, prepare_image, read_pixels):
            with pytest.raises(
                RowError, match="that are no image .*decoded are JPEG, PNG, .*replace|no image.* Save"
            ) as caught:
                read(data)
            assert caught.value.kind == "image", name
        with pytest.raises(RowError, match="no image"):
            read_pixels(tmp_path / f"{name}.png")
    with pytest.raises(RowError, match=r"format EPS, which is not decoded here .*give image.convert"):
        read_pixels(Image.open(io.BytesIO(program)))
    assert started == []


def damaged(kind: str, at: float, junk: bytes, **options) -> bytes:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8))
    data = bytearray(encode(noise, kind, **options))
    start = int(len(data) * at)
    data[start : start + len(junk)] = junk
    return bytes(data)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("at", [0.02, 0.1, 0.3, 0.6, 0.95])
def test_damaged_files_of_any_format_are_counted_or_shown(kind, at):
    for junk in (b"\xff" * 40, bytes(40), b"%!PS" * 10):
        data = damaged(kind, at, junk)
        for read in (decode_pixels, prepare_image, check_header):
            try:
                read(data, "here", max_pixels=10**6)
            except RowError as error:
                assert error.kind in ("image", "image_truncated", "image_too_large")
                assert str(error).startswith("here: ")


@pytest.mark.parametrize(
    "error",
    [RuntimeError("decoder"), MemoryError(), AssertionError(), IndexError(), struct.error("x"), RecursionError()],
)
def test_whatever_a_decoder_raises_names_the_row(error, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(RowError, match="a.jsonl:7: the image is broken .*Replace the image") as caught:
        decode_pixels(PNG, "a.jsonl:7")
    assert caught.value.__cause__ is error
    assert caught.value.kind == "image"


def test_a_smaller_file_that_would_be_too_long_for_a_jpeg_keeps_its_bytes():
    data = encode(Image.new("L", (70_000, 40)))
    assert prepare_image(data, short_side=39) == data
    shorter = prepare_image(encode(Image.new("L", (60_000, 40))), short_side=20)
    assert decode_pixels(shorter).shape == (20, 30_000, 3)


def test_paths_are_those_of_the_person(monkeypatch, folder):
    monkeypatch.setenv("HOME", str(folder))
    assert np.array_equal(read_pixels("~/photo.png"), RGB)
    monkeypatch.chdir(folder)
    assert np.array_equal(read_pixels(Path("photo.png")), RGB)

"""Pictures of every kind, whole and damaged: each becomes pixels or a problem of a row that is counted."""

import io
import random
import resource

import numpy as np
import pytest
from PIL import Image

from gitllm_plugin.m3it.images import FORMATS, check_header, decode_pixels, prepare_image
from gitllm_plugin.m3it.pictures import read_pixels
from gitllm_plugin.m3it.problems import KINDS, RowError

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "I;16B", "F")
MOST_PIXELS = 300_000
MOST_MEMORY = 700_000  # kB more than before: a decoder may take some hundred bytes a pixel


def make_picture(generator: random.Random) -> Image.Image:
    """A picture of any mode and size, strips included."""
    mode = generator.choice(MODES)
    long, short = generator.choice([(1, 1), (7, 3), (64, 48), (200, 1), (3000, 2), (90, 90)])
    width, height = (long, short) if generator.random() < 0.5 else (short, long)
    noise = np.random.default_rng(generator.randrange(2**32))
    if mode.startswith("I;16"):
        values = noise.integers(0, 65536, (height, width)).astype(">u2" if mode.endswith("B") else "<u2")
        return Image.fromarray(values)
    if mode == "I":
        most = generator.choice([256, 65536, 2**31])
        return Image.fromarray(noise.integers(0, most, (height, width)).astype(np.int32))
    if mode == "F":
        return Image.fromarray((noise.random((height, width)) * generator.choice([1, 1, 2])).astype(np.float32))
    picture = Image.fromarray(noise.integers(0, 256, (height, width, 4), dtype=np.uint8))
    if mode == "PA":
        return picture.convert("RGB").convert("P").convert("PA")
    if mode == "LAB":
        return Image.frombytes("LAB", picture.size, picture.convert("RGB").tobytes())
    return picture if mode == "RGBA" else picture.convert("RGB").convert(mode)


def make_file(generator: random.Random) -> bytes:
    """A picture in any format that can hold it."""
    picture = make_picture(generator)
    options = {}
    if generator.random() < 0.3:
        exif = Image.Exif()
        exif[0x0112] = generator.randrange(10)
        options["exif"] = exif
    if generator.random() < 0.2:
        options["transparency"] = generator.choice([0, 3, (1, 2, 3), b"\0\x80\xff"])
    if generator.random() < 0.3:
        options |= {"save_all": True, "append_images": [picture]}
    # JPEG inside TIFF, and AVIF below, of what their encoders cannot hold, end the process.
    packed = ["jpeg"] if picture.mode in ("L", "RGB") else []
    compression = generator.choice([None, "tiff_lzw", "tiff_adobe_deflate", "packbits", *packed])
    for name in generator.sample(sorted(FORMATS), len(FORMATS)):
        if name == "TIFF" and picture.mode == "YCbCr" and compression is None:
            continue  # which Pillow writes, and refuses to read
        if name == "AVIF" and (picture.mode not in ("L", "RGB", "RGBA") or min(picture.size) < 16):
            continue
        for tried in ({}, {}) if name == "AVIF" else (options, {}):
            buffer = io.BytesIO()
            try:
                picture.save(buffer, name, **tried, **({"compression": compression} if name == "TIFF" else {}))
            except Exception:  # a mode or an option that the format does not have
                continue
            return buffer.getvalue()
    raise AssertionError(f"no format holds {picture}")


def damage(data: bytes, generator: random.Random) -> bytes:
    """Change a few bytes, cut the end off, leave a piece out, or put another file's bytes in."""
    changed = bytearray(data)
    for _ in range(generator.choice([1, 1, 2, 8, 64])):
        at = (
            generator.randrange(len(changed))
            if generator.random() < 0.5
            else generator.randrange(min(len(changed), 200))
        )
        kind = generator.randrange(5)
        if kind < 2:
            changed[at] = generator.choice([0, 255, 127, generator.randrange(256)])
        elif kind == 2:
            changed[at : at + 4] = generator.randbytes(4)
        elif kind == 3:
            del changed[at : at + generator.choice([1, 4, 100])]
        else:
            changed = changed[: max(at, 1)] if generator.random() < 0.2 else changed
        changed = changed or bytearray(b"\0")
    return bytes(changed)


def check(data: bytes) -> str:
    """Read the file in all ways; gives what became of it."""
    outcomes = []
    for read in (decode_pixels, read_pixels):
        try:
            pixels = read(data, "here", max_pixels=MOST_PIXELS)
        except RowError as error:
            assert error.kind in KINDS and str(error).startswith("here: ")
            outcomes.append(error.kind)
            continue
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
        assert 0 < pixels.shape[0] * pixels.shape[1] <= MOST_PIXELS
        outcomes.append("pixels")
    for prepare in (check_header, prepare_image):
        try:
            prepare(data, "here", max_pixels=MOST_PIXELS)
        except RowError as error:
            outcomes.append(error.kind)
    try:
        smaller = prepare_image(data, "here", short_side=5, max_pixels=MOST_PIXELS)
        assert decode_pixels(smaller).size
    except RowError as error:
        outcomes.append(error.kind)
    return outcomes[0]


def run(seeds: range) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = {"whole": [], "damaged": []}
    for seed in seeds:
        generator = random.Random(seed)
        data = make_file(generator)
        if seed % 4 == 0:
            outcomes["whole"].append(check(data))
        else:
            outcomes["damaged"].append(check(damage(data, generator)))
    # Numbers that are no levels of grey are all that is refused of whole ones.
    assert outcomes["whole"].count("pixels") > 0.8 * len(outcomes["whole"])
    assert set(outcomes["whole"]) <= {"pixels", "image"}
    assert {"pixels", "image", "image_truncated"} <= set(outcomes["damaged"])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_MEMORY


@pytest.mark.filterwarnings("ignore")
def test_pictures_whole_and_damaged():
    run(range(500))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")
def test_many_pictures_whole_and_damaged():
    run(range(500, 25_500))

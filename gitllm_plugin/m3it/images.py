"""From base64 text to image bytes to an RGB picture, and smaller image files for shards.

JPEG is decoded by libjpeg-turbo without a detour, to the same pixels as Pillow's; Pillow decodes the other formats that
are listed here, and is the judge of files that are not quite right. What else Pillow knows is not decoded: some of it
is a program that another program would run (EPS), some is handed to plugins, some has no sign that it is a picture.
"""

import binascii
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

import numpy as np
import pybase64
import simplejpeg
from PIL import Image, ImageFile

from gitllm_plugin.m3it.colors import rgb_pixels
from gitllm_plugin.m3it.problems import RowError

MAX_PIXELS = 89_478_485
"""The largest picture that is decoded, where Pillow begins to warn: a bound against decompression bombs."""

JPEG_QUALITY = 95
"""Of images that were made smaller for a shard."""

_JPEG, _JPEG_SCAN = b"\xff\xd8", b"\xff\xda"  # markers: a picture begins, its pixels begin

FORMATS: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),  # of MPO, several JPEG in a file, the first
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "JPEG2000": (".jp2", ".j2k"),
}
"""Formats that are decoded, by Pillow's names, all of them in this process, and how their files are called."""

SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
"""How picture files are called, in lower case."""

ENDINGS = (*SUFFIXES, ".heic", ".heif", ".tga", ".ico")
"""Also of kinds that are not decoded: who names one has to be told so, and not be answered as if there were none."""

_LONGEST_JPEG_SIDE = 65_500

_NO_IMAGES = tuple(
    (re.compile(pattern, re.DOTALL | re.IGNORECASE), f"{said}. {advice}, or leave it out")
    for pattern, said, advice in (
        (rb"\Z", "the file is empty: no image", "Copy it again"),
        (
            rb".{4}ftyp(?:hei|hev|.{0,40}heic)",
            "an image in HEIC, as phones take it, which is not read",
            "Save it as JPEG (heif-convert A.HEIC A.jpg does)",
        ),
        (rb".{4}ftyp", "a video or HEIF, no image that is read", "Take a picture of it"),
        (rb"%PDF", "a PDF, no image", "Save its pages as PNG (pdftoppm -png does)"),
        (rb"\s*<\?xml.{0,2000}<svg|\s*<svg", "a drawing in SVG, no image of pixels", "Save it as PNG"),
        (rb"\s*<(?:!doctype )?html", "a web page, no image: not what was to be downloaded", "Download it again"),
        (rb"PK\x03\x04", "a ZIP file, no image", "Unpack it"),
    )
)
"""What is often found in the place of an image: the beginning of its bytes, and what is said of it."""


def decode_base64(text: str, place: str = "") -> bytes:
    """Decode an image's base64 text.

    Args:
        text: plain base64, padded, without line breaks.
        place: which row it belongs to, for messages.

    Raises:
        RowError: of kind ``base64``.
    """
    try:
        return pybase64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RowError(
            "base64",
            f"the image is not plain base64 ({error}); it starts with {text[:40]!r}. "
            "Write the image file's bytes as base64 without line breaks",
            place,
        ) from error


def check_header(data: bytes, place: str = "", max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Read an image's header: whether it is an image, and how large. The pixels are not looked at.

    Returns:
        width and height, before it is turned upright.

    Raises:
        RowError: of kind ``image`` or ``image_too_large``.
    """
    return _open(data, place, max_pixels).size


def decode_image(data: bytes, place: str = "", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode one picture of any format in :data:`FORMATS` to RGB, without EXIF or anything else beside its pixels.

    The EXIF orientation is applied. What is transparent is laid on white, as a page would show it. Grey of more than
    eight bits is scaled as :func:`~gitllm_plugin.m3it.colors.eight_bits` says. ICC profiles are not applied.

    Args:
        data: an encoded image file.
        place: which example it belongs to, for messages.
        max_pixels: refuse pictures with more pixels than this, before they are decoded.

    Raises:
        RowError: of kind ``image``, ``image_truncated`` or ``image_too_large``.
    """
    return Image.fromarray(decode_pixels(data, place, max_pixels=max_pixels))


def decode_pixels(data: bytes, place: str = "", *, least_side: int = 0, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode one picture to an array, the pixels of :func:`decode_image`.

    Args:
        data: an encoded image file.
        place: which example it belongs to, for messages.
        least_side: decode a JPEG at as few eighths of its size as leave no side shorter than this, in less time;
            0 for its full size.
        max_pixels: as for :func:`decode_image`.

    Returns:
        uint8 [height, width, 3].

    Raises:
        RowError: as :func:`decode_image`.
    """
    if _is_plain_jpeg(data, max_pixels):
        with suppress(Exception):  # broken, or only odd: Pillow decides
            # Neither fast option: the pixels have to be those of Pillow, which decodes what is not a plain JPEG.
            return simplejpeg.decode_jpeg(
                data, "RGB", fastdct=False, fastupsample=False, min_height=least_side, min_width=least_side
            )
    return load_pixels(_open(data, place, max_pixels), place)


def load_pixels(image: Image.Image, place: str = "") -> np.ndarray:
    """Decode a picture that Pillow has opened, or take one that it has in memory.

    Returns:
        uint8 [height, width, 3], see :func:`~gitllm_plugin.m3it.colors.rgb_pixels`.

    Raises:
        RowError: of kind ``image`` or ``image_truncated``.
    """
    try:
        with _refuse_truncated_files():
            return rgb_pixels(image)
    # Decoders raise whatever they come across in a damaged file, lack of memory for a nonsensical size included.
    except Exception as error:
        # Pillow's own word for a file that ends too early; some formats have no other sign of it.
        kind = "image_truncated" if "truncated" in str(error) else "image"
        said = str(error) or type(error).__name__
        raise RowError(kind, f"the image is broken ({said}). Replace the image or leave it out", place) from error


def check_size(width: int, height: int, place: str = "", max_pixels: int = MAX_PIXELS) -> None:
    """Refuse a picture without pixels, or with too many.

    Raises:
        RowError: of kind ``image`` or ``image_too_large``.
    """
    if width * height > max_pixels:
        raise RowError(
            "image_too_large",
            f"the image has {width} x {height} pixels, more than the {max_pixels:,} allowed. "
            "Make it smaller or leave it out",
            place,
        )
    if width < 1 or height < 1:
        raise RowError("image", f"the image has {width} x {height} pixels: none. Give one with pixels", place)


def prepare_image(
    data: bytes, place: str = "", *, short_side: int | None = None, max_pixels: int = MAX_PIXELS
) -> bytes:
    """Decode an image, so that what is broken is known now, and make it smaller if that is asked for.

    An image whose shorter side is longer than ``short_side`` is turned as its EXIF says, made smaller (bicubic,
    antialiased; a large JPEG is decoded at an eighth or more of its size, never below twice the result's) and written
    as JPEG of quality 95 with full colour resolution. All others keep their bytes, and so do those that would still be
    longer than a JPEG can be.

    Args:
        data: an encoded image file.
        place: where it comes from, for messages.
        short_side: the longest that the shorter side may be, in pixels; None: any.
        max_pixels: refuse pictures with more pixels than this, before they are decoded.

    Raises:
        RowError: if the image cannot be used.
    """
    # Twice the result's side: the bicubic filter, not the decoder, decides how the smaller picture looks.
    least_side = 0 if short_side is None else 2 * short_side
    pixels = decode_pixels(data, place, least_side=least_side, max_pixels=max_pixels)
    if short_side is None or min(pixels.shape[:2]) <= short_side:
        return data
    # Pixels that were turned already: the file that is written has no EXIF.
    image = Image.fromarray(pixels)
    scale = short_side / min(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    if max(width, height) > _LONGEST_JPEG_SIDE:
        return data
    buffer = io.BytesIO()
    smaller = image.resize((width, height), Image.Resampling.BICUBIC)
    smaller.save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _is_plain_jpeg(data: bytes, max_pixels: int) -> bool:
    """Tell whether it is a JPEG, grey or in colour, not too large, that nothing asks to be turned."""
    if not data.startswith(_JPEG):
        return False
    head = data[len(_JPEG) : data.find(_JPEG_SCAN)]  # with thumbnails, it would end in the first of them
    if any(mark in head for mark in (_JPEG, b"Exif", b"tiff:Orientation")):
        return False
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except Exception:  # Pillow decides
        return False
    return colorspace in ("YCbCr", "RGB", "Gray") and int(height) * int(width) <= max_pixels


@contextmanager
def _refuse_truncated_files() -> Iterator[None]:
    """Let Pillow raise on files that break off."""
    # Importing LAVIS tells Pillow, for the whole process, to fill what is missing with grey: a model would be trained
    # on half a picture. It is put back, since other code of the process may count on it.
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


@cache
def _known_formats() -> tuple[str, ...]:
    """List what of :data:`FORMATS` this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _why_no_image(data: bytes) -> str:
    """Say what a file is that is no image, and what to do."""
    for pattern, said in _NO_IMAGES:
        if pattern.match(data):
            return said
    return (
        f"{len(data):,} bytes that are no image (they start with {data[:8]!r}). Expected an encoded image file such as "
        f"PNG or JPEG (decoded are {', '.join(_known_formats())}); replace the image or leave it out"
    )


def _open(data: bytes, place: str, max_pixels: int) -> Image.Image:
    """Read a picture's header."""
    try:
        with warnings.catch_warnings():
            # Pillow warns from the bound on that is enforced here.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=_known_formats())
    except Image.DecompressionBombError as error:
        raise RowError(
            "image_too_large", f"the image is too large ({error}). Make it smaller or leave it out", place
        ) from error
    except Exception as error:  # see load_pixels
        raise RowError("image", _why_no_image(data), place) from error
    check_size(*image.size, place, max_pixels)
    return image

"""From an encoded picture to RGB pixels.

JPEG is decoded by libjpeg-turbo without a detour, to the same pixels as Pillow's; Pillow decodes everything else, and
is the judge of files that are not quite right.
"""

import base64
import binascii
import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageFile, ImageOps

from gitllm_plugin.errors import DataError

MAX_PIXELS = 178_956_970
"""The largest picture that is decoded, where Pillow too stops: a bound against decompression bombs."""

# What Pillow raises, depending on the format, for files that break off or hold nonsense.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError)


def decode_image(data: bytes, place: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes one picture (any format that Pillow reads) to RGB.

    The EXIF orientation is applied. Transparent parts are laid on white, as a page would show them. Of
    16-bit grey pictures the upper eight bits are kept.

    Args:
        data: an encoded image file.
        place: which example it belongs to, for messages.
        max_pixels: refuse pictures with more pixels than this, before they are decoded.

    Raises:
        DataError: if the bytes are not a whole picture, or it is too large.
    """
    image = _open(data, place, max_pixels)
    with _refuse_truncated_files():
        return _load(image, place)


def decode_pixels(
    data: bytes, place: str, *, least_side: int = 0, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Decodes one picture to an array, the pixels of :func:`decode_image` in less time.

    Args:
        data: an encoded image file.
        place: which example it belongs to, for messages.
        least_side: decode a JPEG at as few eighths of its size as leave no side shorter than this, in less time;
            0 for its full size.
        max_pixels: as for :func:`decode_image`.

    Returns:
        uint8 [height, width, 3].

    Raises:
        DataError: as :func:`decode_image`.
    """
    image = _open(data, place, max_pixels)
    if image.format == "JPEG" and image.mode in ("RGB", "L") and _is_upright(image):
        with suppress(ValueError):  # broken, or only odd: Pillow decides
            return simplejpeg.decode_jpeg(
                data, "RGB", fastdct=False, fastupsample=False, min_height=least_side, min_width=least_side
            )
    with _refuse_truncated_files():
        return np.array(_load(image, place))


def decode_base64(text: str, place: str) -> bytes:
    """The bytes of an image file that a row holds as base64.

    Raises:
        DataError: if the text is not base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(
            f"{place}: the image is not base64 ({error}). Write the image file's bytes as plain base64."
        ) from error


def _is_upright(image: Image.Image) -> bool:
    """Whether EXIF asks for no rotation; EXIF that cannot be read asks for none."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    except (*_BROKEN, struct.error):
        return True


def _load(image: Image.Image, place: str) -> Image.Image:
    try:
        image.load()
        return _to_rgb(image if _is_upright(image) else ImageOps.exif_transpose(image))
    except _BROKEN as error:
        raise DataError(f"{place}: the image is broken ({error}). Replace the image or remove the row.") from error


@contextmanager
def _refuse_truncated_files() -> Iterator[None]:
    """Lets Pillow raise on files that break off.

    Importing LAVIS tells Pillow, for the whole process, to fill what is missing with grey.
    """
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _open(data: bytes, place: str, max_pixels: int) -> Image.Image:
    """Reads a picture's header."""
    try:
        with warnings.catch_warnings():
            # Pillow warns at half of the bound that is enforced here.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise DataError(f"{place}: the image is too large ({error}). Make it smaller or remove the row.") from error
    except _BROKEN as error:
        raise DataError(
            f"{place}: {len(data)} bytes that are no image (they start with {data[:8]!r}). "
            "Expected an encoded image file such as PNG or JPEG; replace the image or remove the row."
        ) from error
    width, height = image.size
    if width * height > max_pixels:
        raise DataError(
            f"{place}: the image has {width} x {height} pixels, more than the {max_pixels:,} allowed. "
            "Make it smaller or remove the row."
        )
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255, which would leave a white picture.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(background, image).convert("RGB")
    return image.convert("RGB")

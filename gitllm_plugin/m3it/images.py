"""From base64 text to an RGB picture."""

import base64
import binascii
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageFile, ImageOps

from gitllm_plugin.errors import DataError

MAX_PIXELS = 178_956_970
"""The largest picture that is decoded, where Pillow too stops: a bound against decompression bombs."""

# What Pillow raises, depending on the format, for files that break off or hold nonsense.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError)


def decode_image(image_base64: str, place: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes one picture (any format that Pillow reads) to RGB.

    The EXIF orientation is applied. Transparent parts are laid on white, as a page would show them. Of
    16-bit grey pictures the upper eight bits are kept.

    Args:
        image_base64: an encoded image file as base64 text.
        place: which example it belongs to, for messages.
        max_pixels: refuse pictures with more pixels than this, before they are decoded.

    Raises:
        DataError: if the text is not base64, or its bytes are not a whole picture, or it is too large.
    """
    data = _decode_bytes(image_base64, place)
    with _refuse_truncated_files():
        return _decode_picture(data, place, max_pixels)


def _decode_picture(data: bytes, place: str, max_pixels: int) -> Image.Image:
    image = _open(data, place)
    width, height = image.size
    if width * height > max_pixels:
        raise DataError(
            f"{place}: the image has {width} x {height} pixels, more than the {max_pixels:,} allowed. "
            "Make it smaller or remove the row."
        )
    try:
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except _BROKEN as error:
        raise DataError(f"{place}: the image is broken ({error}). Replace the image or remove the row.") from error


def _decode_bytes(image_base64: str, place: str) -> bytes:
    try:
        return base64.b64decode(image_base64, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(
            f"{place}: the image is not base64 ({error}). Write the image file's bytes as plain base64."
        ) from error


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


def _open(data: bytes, place: str) -> Image.Image:
    """Reads a picture's header."""
    try:
        with warnings.catch_warnings():
            # Pillow warns at half of the bound that is enforced here.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise DataError(f"{place}: the image is too large ({error}). Make it smaller or remove the row.") from error
    except _BROKEN as error:
        raise DataError(
            f"{place}: {len(data)} bytes that are no image (they start with {data[:8]!r}). "
            "Expected an encoded image file such as PNG or JPEG; replace the image or remove the row."
        ) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255, which would leave a white picture.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(background, image).convert("RGB")
    return image.convert("RGB")

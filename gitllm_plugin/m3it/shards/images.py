"""What is done with an image before it goes into a shard."""

import io

from PIL import Image

from gitllm_plugin.m3it.images import MAX_PIXELS, decode_pixels

JPEG_QUALITY = 95


def prepare_image(
    data: bytes, place: str = "", *, short_side: int | None = None, max_pixels: int = MAX_PIXELS
) -> bytes:
    """Decodes an image, so that what is broken is known now, and makes it smaller if that is asked for.

    An image whose shorter side is longer than ``short_side`` is turned as its EXIF says, made smaller (bicubic,
    antialiased; a large JPEG is decoded at an eighth or more of its size, never below twice the result's) and written
    as JPEG of quality 95 with full colour resolution. All others keep their bytes.

    Args:
        data: an encoded image file.
        place: where it comes from, for messages.
        short_side: the longest that the shorter side may be, in pixels; None: any.
        max_pixels: refuse pictures with more pixels than this, before they are decoded.

    Raises:
        RowError: if the image cannot be used.
    """
    least_side = 0 if short_side is None else 2 * short_side
    pixels = decode_pixels(data, place, least_side=least_side, max_pixels=max_pixels)
    if short_side is None or min(pixels.shape[:2]) <= short_side:
        return data
    image = Image.fromarray(pixels)
    scale = short_side / min(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    buffer = io.BytesIO()
    smaller = image.resize((width, height), Image.Resampling.BICUBIC)
    smaller.save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()

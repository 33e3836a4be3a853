"""From any colours, depths and orientations to upright RGB of eight bits: one rule for pictures and for arrays.

ICC profiles are not applied: the numbers of a file are taken for sRGB, as the image processors of encoders take them.
"""

import struct
from typing import Any

import numpy as np
from PIL import ExifTags, Image

_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
_MAY_HAVE_A_TRANSPARENT_COLOR = ("1", "L", "P", "RGB")
_SLACK = 1e-4  # of floats beyond 0 and 1, far less than a grey level: what resampling and arithmetic leave

# What EXIF asks for, by the number that it says it with.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def rgb_pixels(image: Image.Image) -> np.ndarray:
    """Make RGB of a picture of any mode of Pillow's, turned as its EXIF says.

    What is transparent is laid on white. Grey of more than eight bits follows :func:`eight_bits`.

    Args:
        image: of any mode; loaded here where it was not. It is not changed.

    Returns:
        uint8 ``[height, width, 3]``.

    Raises:
        ValueError: numbers that are no levels of grey, or an unknown mode; and whatever a decoder raises.
    """
    facts = _facts_of_file(image)
    image.load()
    rgb = _to_rgb(image, facts)
    # Behind loading, which turns TIFF by itself and takes the entry away; and some formats have EXIF at their end.
    turn = _TURNS.get(_orientation(image))
    return np.array(rgb if turn is None else rgb.transpose(turn))


def eight_bits(values: np.ndarray, *, bits: int | None = None) -> np.ndarray:
    """Scale levels of grey, or of any channel, to eight bits.

    The upper eight bits are kept of 16. Wider integers are levels of eight bits where none is above 255, else of 16.
    Floats are from 0, black, to 1, white.

    Args:
        values: of any shape and real dtype, at least one.
        bits: how many bits a level has, where that is known better than from the dtype.

    Returns:
        uint8, of the same shape.

    Raises:
        ValueError: other numbers, with what they are.
    """
    kind = values.dtype.kind
    if kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint8 and bits in (None, 8):
        return values
    if kind not in "iuf":
        raise ValueError(f"{values.dtype} are no levels of brightness")
    least, most = values.min(), values.max()
    if kind == "f":
        if not (least >= -_SLACK and most <= 1 + _SLACK):  # NaN is neither
            raise ValueError(f"floats from {least} to {most}; 0 is black and 1 is white, so divide by what white is")
        return (np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8)
    if bits is None:
        bits = 16 if values.dtype == np.uint16 or most > 255 else 8
    if least < 0 or most >= 2**bits:
        raise ValueError(f"integers from {least} to {most}; expected 0 to 255, or 0 to 65535")
    return (values >> (bits - 8)).astype(np.uint8)


def _to_rgb(image: Image.Image, facts: dict[str, Any]) -> Image.Image:
    """Convert a loaded picture, not turned yet."""
    mode = image.mode
    if mode.startswith("I") or mode == "F":
        return _from_deep_grey(image, facts)
    if mode == "LAB":
        return _from_lab(image)
    transparent = image.info.get("transparency")
    if mode == "RGB" and isinstance(transparent, tuple) and (facts["deep"] or max(transparent) > 255):
        # The colours were cut to eight bits by the decoder, the one that is transparent was not.
        image = image.copy()
        image.info["transparency"] = tuple(level >> 8 for level in transparent)
    if image.has_transparency_data and (mode[-1] in "Aa" or mode in _MAY_HAVE_A_TRANSPARENT_COLOR):
        # Pillow has no way from grey with premultiplied alpha but this one.
        image = (image.convert("LA") if mode == "La" else image).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _from_deep_grey(image: Image.Image, facts: dict[str, Any]) -> Image.Image:
    values = np.asarray(image)
    bits = 16 if image.mode.startswith("I;16") else None
    levels = eight_bits(values, bits=facts["bits"] or bits)
    if facts["white_is_zero"]:
        levels = 255 - levels
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        levels = np.where(values == transparent, np.uint8(255), levels)
    return Image.fromarray(levels).convert("RGB")


def _from_lab(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert converted is not None  # it is only where the picture is changed in place
    return converted


def _facts_of_file(image: Image.Image) -> dict[str, Any]:
    """Find what a picture's file says of its levels, before loading forgets it."""
    tags = getattr(image, "tag_v2", None) or {}
    bits = tags.get(_TIFF_BITS) or (0,)
    named = str([tile[3] for tile in getattr(image, "tile", ())])  # raw modes such as "RGB;16B"
    return {
        # Netpbm's greys have 16 bits wherever they have more than eight; TIFF may have 12 in a container of 16.
        "bits": 16 if image.format == "PPM" and image.mode == "I" else 12 if bits == (12,) else None,
        "white_is_zero": image.mode[0] in "IF" and tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO,
        "deep": ";16" in named,
    }


def _orientation(image: Image.Image) -> int:
    """Read which way up EXIF says that a picture is; EXIF that cannot be read asks for nothing."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, struct.error):
        return 1

"""One way from whatever a person has of a picture to its RGB pixels."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it.colors import eight_bits
from gitllm_plugin.m3it.images import FORMATS, MAX_PIXELS, check_size, decode_pixels, load_pixels
from gitllm_plugin.m3it.problems import RowError

Picture = Any
"""A picture: the path of a file, its bytes or an open file; Pillow's image; an array or a tensor; a frame of PyAV.

An array is ``[H, W]``, ``[H, W, C]`` or ``[C, H, W]``, C being 1 (grey), 3 (RGB) or 4 (with alpha), of whole numbers or
of floats from 0 to 1, see :func:`~gitllm_plugin.m3it.colors.eight_bits`.
"""

_CHANNELS = (1, 3, 4)
_WHAT = (
    "give a path, the bytes of an image file, an open file, a PIL image, an array or tensor [H, W, 3], [3, H, W] or "
    "[H, W], or a video frame of PyAV"
)


def read_pixels(picture: Picture, place: str = "", max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Make RGB pixels of a picture, upright, what is transparent laid on white; ICC profiles are not applied.

    Args:
        picture: see :data:`Picture`. It is neither changed nor kept.
        place: where it comes from, for messages; a path stands for itself.
        max_pixels: refuse pictures with more pixels than this.

    Returns:
        uint8 ``[height, width, 3]``, which belongs to the caller.

    Raises:
        DataError: no picture, one that is damaged, empty, too large or of an unknown kind; or an array of another form.
    """
    if isinstance(picture, str) and not picture.strip():
        raise DataError(f"{_before(place)}the picture's name {picture!r} is empty; name a picture file")
    if isinstance(picture, (str, os.PathLike)):
        return decode_pixels(_read_file(Path(picture)), place or str(picture), max_pixels=max_pixels)
    if isinstance(picture, (bytes, bytearray, memoryview)):
        return decode_pixels(bytes(picture), place, max_pixels=max_pixels)
    if isinstance(picture, Image.Image):
        return _of_pillow(picture, place, max_pixels)
    if isinstance(picture, (np.ndarray, np.generic)):
        return _of_array(np.asarray(picture), place, max_pixels)
    if _is(picture, "torch", "Tensor"):
        return _of_array(_as_array(picture), place, max_pixels)
    if _is(picture, "av", "VideoFrame"):
        check_size(picture.width, picture.height, place, max_pixels)
        return _of_frame(picture)
    if hasattr(picture, "read"):
        return decode_pixels(_read_open_file(picture, place), place, max_pixels=max_pixels)
    kind = type(picture).__name__
    raise DataError(f"{_before(place)}{kind} is no picture; {_WHAT}")


def open_picture(picture: Picture, place: str = "") -> Image.Image:
    """Do as :func:`read_pixels`, for code that wants Pillow's image."""
    return Image.fromarray(read_pixels(picture, place))


def as_pictures(pictures: Picture | Iterable[Picture]) -> list[Picture]:
    """Tell one picture from several: a list, a tuple, or an array of four dimensions are several."""
    if isinstance(pictures, (list, tuple)):
        return list(pictures)
    is_array = isinstance(pictures, np.ndarray) or _is(pictures, "torch", "Tensor")
    return list(pictures) if is_array and pictures.ndim == 4 else [pictures]


def _read_file(path: Path) -> bytes:
    try:
        return path.expanduser().read_bytes()
    except (OSError, ValueError, RuntimeError) as error:  # of names that are none: null bytes, an unknown user's home
        web = "; pictures are not fetched: download it" if str(path).startswith(("http:/", "https:/")) else ""
        why = getattr(error, "strerror", None) or error
        raise DataError(f"{str(path)[:200]}: cannot be read ({why}); name a picture file{web}") from error


def _read_open_file(file: Any, place: str) -> bytes:
    # As Image.open does: whoever has just written a file into memory stands at its end.
    if hasattr(file, "seekable") and file.seekable():
        file.seek(0)
    data = file.read()
    if not isinstance(data, bytes):
        raise DataError(f"{_before(place)}a file opened as text; open it with mode 'rb'")
    if not data:
        raise DataError(f"{_before(place)}nothing is in it; expected are the bytes of a picture's file")
    return data


def _of_pillow(image: Image.Image, place: str, max_pixels: int) -> np.ndarray:
    check_size(*image.size, place, max_pixels)
    # A file, of which nothing public tells whether it is decoded yet; what convert() or copy() gives is none.
    if isinstance(image, ImageFile.ImageFile) and image.format not in (*FORMATS, "MPO"):
        raise RowError(
            "image",
            f"a file of format {image.format}, which is not decoded here ({', '.join(FORMATS)} are); if you trust it, "
            'give image.convert("RGB")',
            place,
        )
    return load_pixels(image, place)


def _of_array(array: np.ndarray, place: str, max_pixels: int) -> np.ndarray:
    pixels = _channels_last(array, place)
    check_size(pixels.shape[1], pixels.shape[0], place, max_pixels)
    try:
        levels = eight_bits(pixels)
    except ValueError as error:
        raise RowError("image", f"{_described(array)}: {error}", place) from error
    if levels.shape[2] == 4:
        levels = load_pixels(Image.fromarray(levels), place)
    return np.array(np.broadcast_to(levels, (*levels.shape[:2], 3)), order="C")


def _channels_last(array: np.ndarray, place: str) -> np.ndarray:
    """Give ``[H, W, C]``.

    Raises:
        RowError: another form, or one that is two things at once.
    """
    if array.ndim == 2:
        return array[:, :, None]
    first, last = (array.shape[0], array.shape[2]) if array.ndim == 3 else (0, 0)
    if first not in _CHANNELS and last not in _CHANNELS:
        raise RowError("image", f"{_described(array)} is no picture; {_WHAT}", place)
    if first in _CHANNELS and last in _CHANNELS:
        # A picture that is one pixel high or wide is likelier than one of one channel.
        if (first == 1) == (last == 1):
            raise RowError(
                "image",
                f"{_described(array)} may have its channels first or last; give a PIL image (Image.fromarray takes "
                "[H, W, 3])",
                place,
            )
        return array if first == 1 else array.transpose(1, 2, 0)
    return array if last in _CHANNELS else array.transpose(1, 2, 0)


def _as_array(tensor: Any) -> np.ndarray:
    tensor = tensor.detach().cpu()
    # numpy has no bfloat16.
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _of_frame(frame: Any) -> np.ndarray:
    """Convert a frame, turned and mirrored as the video says that it is shown."""
    pixels = frame.to_ndarray(format="rgb24")
    shown = next((data for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
    if shown is None:
        return pixels
    a, b, _, c, d = np.frombuffer(bytes(shown), np.int32)[:5].astype(float)
    # FFmpeg's display matrix: the pixel at (x, y) is shown at (a x + c y, b x + d y), but for a shift.
    if abs(a) + abs(d) < abs(b) + abs(c):
        pixels, mirrored, upside_down = pixels.transpose(1, 0, 2), c < 0, b < 0
    else:
        mirrored, upside_down = a < 0, d < 0
    pixels = pixels[:, ::-1] if mirrored else pixels
    return np.ascontiguousarray(pixels[::-1] if upside_down else pixels)


def _is(thing: Any, module: str, name: str) -> bool:
    """Tell whether a thing is of a library's class; none is of a library that was not imported."""
    cls = getattr(sys.modules.get(module), name, None)
    return cls is not None and isinstance(thing, cls)


def _described(array: np.ndarray) -> str:
    return f"an array of {array.dtype} {list(array.shape)}"


def _before(place: str) -> str:
    return f"{place}: " if place else ""

"""Pictures from files, with the bounds and the errors of the data set's pictures."""

from pathlib import Path

from PIL import Image

from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it.images import decode_image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def open_picture(path: str | Path) -> Image.Image:
    """Open a picture as RGB.

    Raises:
        DataError: no such file, no whole picture, or too large.
    """
    try:
        data = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); name a picture file") from error
    return decode_image(data, str(path))


def find_pictures(folder: str | Path) -> list[Path]:
    """Find the picture files of a folder and the folders in it, in alphabetical order.

    Raises:
        DataError: no such folder, or none in it.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise DataError(f"{folder} {found}; name a folder of pictures")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise DataError(f"{folder} holds no picture; known kinds: {', '.join(SUFFIXES)}")
    return paths

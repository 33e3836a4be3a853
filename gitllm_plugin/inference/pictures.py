"""Picture files in folders."""

from pathlib import Path

from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it.images import SUFFIXES


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

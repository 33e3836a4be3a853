"""Picture files in folders."""

import glob
from collections.abc import Iterable
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


def list_pictures(names: Iterable[str]) -> list[str]:
    """List the pictures that files, folders and patterns mean, each once, in the order in which they are named.

    A file is taken whatever its ending; of folders and patterns only files with the ending of a picture.

    Raises:
        DataError: one that is empty or means nothing, or a folder without pictures.
    """
    found: dict[str, None] = {}
    for name in names:
        if not name.strip():
            raise DataError(f"the name {name!r} is empty; name a picture, a folder or a pattern")
        path = Path(name).expanduser()
        if path.is_dir():
            found |= dict.fromkeys(map(str, find_pictures(path)))
        elif path.exists():
            found[str(path)] = None
        else:
            matches = sorted(glob.glob(str(path), recursive=True))
            pictures = [match for match in matches if Path(match).suffix.lower() in SUFFIXES]
            if not pictures:
                raise DataError(f"{name} is no file, no folder, and no pattern that a picture's name fits")
            found |= dict.fromkeys(pictures)
    if not found:
        raise DataError("no picture was named")
    return list(found)

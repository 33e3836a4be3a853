"""Picture files in folders."""

import glob
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it.images import ENDINGS, SUFFIXES


def find_pictures(folder: str | Path, tell: Callable[[str], None] = lambda note: None) -> list[Path]:
    """Find the picture files of a folder and the folders in it, in alphabetical order.

    What begins with a dot is not looked at.

    Args:
        folder: where.
        tell: is told what is no picture.

    Raises:
        DataError: no such folder, or none in it.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise DataError(f"{folder} {found}; name a folder of pictures")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not _hidden(path.relative_to(folder)))
    paths = [path for path in files if path.suffix.lower() in ENDINGS]
    if not paths:
        raise DataError(f"{folder} holds no picture; known kinds: {', '.join(SUFFIXES)}")
    if kinds := Counter(path.suffix.lower() or "no ending" for path in files if path.suffix.lower() not in ENDINGS):
        listed = ", ".join(f"{count:,} of {kind}" for kind, count in sorted(kinds.items()))
        tell(f"{folder}: files that are no pictures: {kinds.total():,} ({listed})")
    return paths


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def list_pictures(names: Iterable[str], tell: Callable[[str], None] = lambda note: None) -> list[str]:
    """List the pictures that files, folders and patterns mean, each once, in the order in which they are named.

    A file is taken whatever its ending; of folders and patterns only files with the ending of a picture.

    Args:
        names: of them.
        tell: is told what else is in a folder.

    Raises:
        DataError: one that is empty or means nothing, or a folder without pictures.
    """
    found: dict[str, None] = {}
    for name in names:
        if not name.strip():
            raise DataError(f"the name {name!r} is empty; name a picture, a folder or a pattern")
        path = Path(name).expanduser()
        if path.is_dir():
            found |= dict.fromkeys(map(str, find_pictures(path, tell)))
        elif path.exists():
            found[str(path)] = None
        else:
            matches = sorted(glob.glob(str(path), recursive=True))
            pictures = [match for match in matches if Path(match).suffix.lower() in ENDINGS]
            if not pictures:
                raise DataError(f"{name} is no file, no folder, and no pattern that a picture's name fits")
            found |= dict.fromkeys(pictures)
    if not found:
        raise DataError("no picture was named")
    return list(found)

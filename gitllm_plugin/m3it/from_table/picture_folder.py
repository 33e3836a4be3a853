"""Pictures in a folder and the folders below it, by their names or by the numbers in these."""

import os
import re
from functools import cached_property
from pathlib import Path, PurePath

from gitllm_plugin.m3it.from_table.pictures import has_picture_ending
from gitllm_plugin.m3it.from_table.settings import split_of_name
from gitllm_plugin.m3it.problems import RowError

_DEEP = 2  # folders: images/train2017
_NUMBER = re.compile(r"(\d+)$")


class PictureFolder:
    """A folder of folders of pictures, as COCO's are: ``train2017``, ``val2017``.

    Args:
        root: the outermost.
    """

    def __init__(self, root: Path):
        self._root = root

    def by_name(self, name: str, split: str, place: str) -> Path:
        """Find the file of a name, which may have folders in it.

        Args:
            name: as ``file_name`` says.
            split: of several files of that name, the one whose path has this split in it is meant.
            place: for messages.

        Raises:
            RowError: there is none, or are several.
        """
        path = self._root / name
        if path.is_file():
            return path
        wanted = PurePath(name).parts
        found = [path for path in self._files.get(wanted[-1] if wanted else "", ()) if _ends(path, wanted)]
        return self._only(found, name, split, place)

    def start_of(self, name: str) -> Path | None:
        """Find the folder from which on a name leads to a picture; None: from none in here."""
        wanted = PurePath(name.replace("\\", "/")).parts
        found = [path for path in self._files.get(wanted[-1] if wanted else "", ()) if _ends(path, wanted)]
        return Path(*found[0].parts[: -len(wanted)]) if found else None

    def by_number(self, number: str, split: str, place: str) -> Path:
        """Find the file whose name ends in a number before its ending, as ``COCO_train2014_000000000009.jpg`` in 9.

        Raises:
            RowError: there is none, or are several.
        """
        if not number:
            raise RowError("missing_key", "it has no 'image_id'", place)
        return self._only(self._numbered.get(number, []), f"a picture of the number {number}", split, place)

    @cached_property
    def _files(self) -> dict[str, list[Path]]:
        files: dict[str, list[Path]] = {}
        for place, folders, names in os.walk(self._root, followlinks=True):
            depth = len(Path(place).relative_to(self._root).parts)
            folders[:] = sorted(name for name in folders if not name.startswith(".")) if depth < _DEEP else []
            for name in filter(has_picture_ending, names):
                files.setdefault(name, []).append(Path(place) / name)
        return files

    @cached_property
    def _numbered(self) -> dict[str, list[Path]]:
        numbered: dict[str, list[Path]] = {}
        for path in (path for paths in self._files.values() for path in paths):
            if found := _NUMBER.search(path.stem):
                numbered.setdefault(str(int(found[1])), []).append(path)
        return numbered

    def _only(self, found: list[Path], what: str, split: str, place: str) -> Path:
        if len(found) > 1:
            found = [path for path in found if split and split_of_name(path.relative_to(self._root)) == split] or found
        if len(found) == 1:
            return found[0]
        if not found:
            message = f"its picture is not in {self._root}, nor in folders of it; --images FOLDER names another"
            raise RowError("no_image", message, f"{place} ({what})")
        message = f"{len(found)} pictures may be meant, such as {found[0]} and {found[1]}; --images FOLDER chooses"
        raise RowError("wrong_value", message, f"{place} ({what})")


def _ends(path: Path, parts: tuple[str, ...]) -> bool:
    return path.parts[-len(parts) :] == parts

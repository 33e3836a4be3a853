"""From what a cell names to a picture's bytes."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pybase64

from gitllm_plugin.m3it.images import ENDINGS, prepare_image
from gitllm_plugin.m3it.problems import RowError
from gitllm_plugin.m3it.rows import describe

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_SHOWN = 200
_KEPT = 16  # pictures; rows about one picture mostly stand together


def has_picture_ending(name: str) -> bool:
    """Tell whether a file's name ends as those of pictures do."""
    return name.lower().endswith(ENDINGS)


class Pictures:
    """The picture files of a table.

    Args:
        folder: that names are relative to.
        short_side: see :class:`gitllm_plugin.m3it.from_table.settings.FromTable`.
        scratch: where pictures that are in the data itself are kept, each once; None: such are refused.
    """

    def __init__(self, folder: Path, short_side: int | None, scratch: Path | None = None):
        self.folder, self._short_side, self._scratch = folder, short_side, scratch
        self._digests: dict[Path, bytes] = {}
        self.missing: list[str] = []
        """The names that were looked for in vain."""
        self._prepare = lru_cache(maxsize=_KEPT)(self._prepare_once)

    @property
    def found_any(self) -> bool:
        """Whether a picture was found at all."""
        return bool(self._digests)

    def find(self, name: str, place: str) -> Path:
        """Find the file that a cell names.

        A backslash is one of a path of Windows, and ``~`` the home folder, where no file has it in its name.

        Raises:
            RowError: it is no file.
        """
        if _ADDRESS.match(name) or name.lower().startswith("data:"):
            raise RowError("no_image", f"{_shown(name)} is no file: {_advice(name)}", place)
        path = self.folder / name
        for other in (path, self.folder / name.replace("\\", "/"), _home(name)):
            if other is not None and _is_file(other):
                return other
        self.missing.append(name)
        found = "it is a folder" if _is_folder(path) else _why_not(path)
        raise RowError("no_image", f"{_shown(str(path))} cannot be read ({found})", place)

    def kept(self, cell: Any, place: str) -> Path | None:
        """Keep a picture that is in a cell itself: bytes, or a mapping of the library ``datasets`` with them.

        Returns:
            Its file; None: the cell holds no picture, but perhaps a name.

        Raises:
            RowError: the mapping holds none.
        """
        if self._scratch is None or not isinstance(cell, (bytes, Mapping)):
            return None
        content = cell.get("bytes") if isinstance(cell, Mapping) else cell
        if content is None and isinstance(cell, Mapping) and isinstance(cell.get("path"), str):
            return self.find(cell["path"], place)
        if not isinstance(content, bytes) or not content:
            raise RowError("no_image", f"the image is {describe(cell)}, expected its bytes or a file's name", place)
        digest = hashlib.sha256(content)
        path = self._scratch / digest.hexdigest()
        if path not in self._digests:
            path.write_bytes(content)
            self._digests[path] = digest.digest()
        return path

    def is_picture(self, name: str) -> bool:
        """Tell whether a text is likely to name a picture."""
        return 0 < len(name) <= _SHOWN and (has_picture_ending(name) or _is_file(self.folder / name))

    def digest(self, paths: Sequence[Path], place: str) -> tuple[list[bytes], bytes]:
        """Hash the files as they are, before anything is made smaller.

        Returns:
            SHA-256 of each file, and of all one after another.

        Raises:
            RowError: one cannot be read.
        """
        for path in paths:
            if path not in self._digests:
                self._digests[path] = hashlib.sha256(_read(path, place)).digest()
        each = [self._digests[path] for path in paths]
        if len(paths) == 1:
            return each, each[0]
        whole = hashlib.sha256()
        for path in paths:
            whole.update(_read(path, place))
        return each, whole.digest()

    def encode(self, path: Path, place: str) -> str:
        """Give the picture's file, made smaller if that was asked for, as base64.

        It is decoded even where it stays as it is: a broken picture is told here, beside its row, not in training.

        Raises:
            RowError: it cannot be read or is broken.
        """
        try:
            return self._prepare(path)
        except RowError as error:
            named = "" if place == str(path) else f"{_shown(str(path))}: "  # the row's place, in a folder
            raise RowError(error.kind, named + error.message, place) from error

    def _prepare_once(self, path: Path) -> str:
        data = prepare_image(_read(path, ""), short_side=self._short_side)
        return pybase64.b64encode(data).decode("ascii")


def _read(path: Path, place: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RowError("no_image", f"{_shown(str(path))} cannot be read ({error.strerror})", place) from error


def _is_file(path: Path) -> bool:
    # Names that are too long for a file system raise, and so do folders that may not be looked into.
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _why_not(path: Path) -> str:
    try:
        path.stat()
    except OSError as error:
        return error.strerror or str(error)
    except ValueError as error:
        return str(error)
    return "it is no ordinary file"


def _home(name: str) -> Path | None:
    try:
        return Path(name).expanduser() if name.startswith("~") else None
    except RuntimeError:  # of a user that there is not
        return None


def _advice(name: str) -> str:
    if name.lower().startswith("file:"):
        return "write its path, without file://"
    if name.lower().startswith("data:"):
        return "a picture in the table itself is not read; write it to a file and name that"
    return "pictures are not fetched; download them first and name the files"


def _shown(text: str) -> str:
    text = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    return text if text.isprintable() else ascii(text)

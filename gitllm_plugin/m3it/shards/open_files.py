"""Files that are read at random places, kept open."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

MAX_OPEN_FILES = 256


class OpenFiles:
    """File descriptors of the files that were opened last.

    Reading at an offset moves no shared position, so forks may share them. Pickled, it is empty: a worker of a data
    loader opens files for itself.
    """

    def __init__(self) -> None:
        self._files: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._files)

    def __getstate__(self) -> dict[str, Any]:
        return {"_files": {}}

    def __del__(self) -> None:
        for file in self._files.values():
            os.close(file)

    def get(self, name: str, find: Callable[[], Path]) -> int:
        """The descriptor of a file.

        Args:
            name: what it is known by.
            find: gives its path, called where it is not open.

        Raises:
            OSError: it cannot be opened.
        """
        if name not in self._files:
            path = find()
            if len(self._files) >= MAX_OPEN_FILES:
                os.close(self._files.pop(next(iter(self._files))))  # the one that was opened first
            self._files[name] = os.open(path, os.O_RDONLY)
        return self._files[name]

"""Folders that exist whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder that is gone after the block; what a killed process left in it goes first."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder to fill, which becomes ``target`` at the end of the block; a ``target`` from before goes.

    When the block fails, or the process is killed in it, ``target`` is as before.
    """
    with scratch_folder(target.with_name(f".{target.name}.partial")) as partial:
        yield partial
        shutil.rmtree(target, ignore_errors=True)
        os.rename(partial, target)

"""Files and folders that are there whole or not at all, even if the process is killed while it writes.

Imports nothing heavy: a folder in use is named before a model is loaded.
"""

import glob
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from gitllm_plugin.errors import ConfigError

_UNFINISHED = ".partial"
_UNFINISHED_IN_0_1_0 = ".writing"


@contextmanager
def atomic_path(path: Path, durable: bool = True) -> Iterator[Path]:
    """Give a path to write to; what is written takes the name ``path`` when the block ends without an error.

    Until then it is called ``.<name>.<host>.<process id>.partial``; its folder is made if need be.

    Args:
        path: the name.
        durable: wait until the disk has it, so that it outlasts a loss of power too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _unfinished(path)
    try:
        partial.unlink(missing_ok=True)
        yield partial
        # Without it a journal may have the new name before the data: after a power cut the file would be empty.
        if durable:
            # A hard link of a file that is write-protected cannot be opened for writing; Windows flushes no other.
            with open(partial, "rb" if os.name == "posix" else "rb+") as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
        if durable:
            _flush_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_file(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a file for writing; see :func:`atomic_path`."""
    with atomic_path(path, durable) as partial, open(partial, "wb") as file:
        yield file


def write_atomically(path: Path, data: bytes, durable: bool = True) -> None:
    """Write a file whole or not at all."""
    with atomic_file(path, durable) as file:
        file.write(data)


def link_or_copy(existing: Path, path: Path) -> None:
    """Let ``path`` be ``existing`` too, without a second copy on disk where the file system has hard links."""
    with atomic_path(path) as partial:
        try:
            os.link(existing, partial)
        except OSError:
            shutil.copy2(existing, partial)


def remove_unfinished(folder: Path, name: str = "*") -> None:
    """Remove what processes that were killed while they wrote left behind.

    Args:
        folder: where.
        name: of the file that they wrote; all, unless given. The caller's lock says that none is writing it now.
    """
    pattern = name if name == "*" else glob.escape(name)
    for ending in (_UNFINISHED, _UNFINISHED_IN_0_1_0):
        for rest in folder.glob(f".{pattern}.*{ending}"):
            rest.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder to fill, which takes the name ``folder`` when the block ends without an error.

    Raises:
        ConfigError: something is there already, other than an empty folder.
    """
    folder = check_new_folder(folder)
    partial = _unfinished(folder)
    # An earlier process of this number may have been killed here.
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        # An empty folder was there and may be: renaming onto it is refused by some systems.
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_new_folder(folder: str | Path) -> Path:
    """Give the folder's path, if nothing is there or an empty folder.

    Raises:
        ConfigError: something is there.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists already; name a new folder, or delete it")
    return folder


def _unfinished(path: Path) -> Path:
    # Beside the target, since only within a file system is renaming one step; named by host and process, since
    # several may write the same file, on a disk that several machines share.
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}{_UNFINISHED}")


def _flush_folder(folder: Path) -> None:
    """Make a renaming survive a power cut."""
    # Systems that cannot open folders (Windows) see to it themselves.
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Files that are there whole or not at all, even if the process is killed while it writes."""

import glob
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_file(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """Opens a file for writing that takes its name when the block ends without an error.

    Until then it is called ``.<name>.<host>.<process id>.partial``; its folder is made if need be.

    Args:
        path: the name.
        durable: wait until the disk has it, so that it outlasts a loss of power too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes, durable: bool = True) -> None:
    """Writes a file whole or not at all."""
    with atomic_file(path, durable) as file:
        file.write(data)


def remove_rests(path: Path) -> None:
    """Removes what processes that were killed have left of a file; the caller's lock says that none is writing it."""
    for rest in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        rest.unlink(missing_ok=True)

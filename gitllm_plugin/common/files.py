"""Files and folders that are there whole or not at all, even if the process is killed while it writes.

What is being written lies in a hidden folder beside its place, ``.<name>.<host>.<process id>.partial``, also what the
libraries that write it put beside it. What a process has left there that was killed is removed by the next one that
writes into the same folder.

Imports nothing heavy: a folder in use is named before a model is loaded.
"""

import contextlib
import errno
import functools
import glob
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from gitllm_plugin.common.processes import is_running
from gitllm_plugin.errors import ConfigError, GitLLMError, StorageError, first_line

_UNFINISHED = ".partial"
_UNFINISHED_IN_0_1_0 = ".writing"
_CONTENT = "content"
"""In the hidden folder: a name without an ending, which nobody who looks for files of a kind takes for one."""

_SECONDS_OF_OTHER_HOSTS = 24 * 3600.0
"""What another machine has not touched for so long is of a process that is gone."""

_FULL = {errno.ENOSPC, errno.EDQUOT}
_OF_WRITING = {*_FULL, errno.EFBIG, errno.EROFS}
"""Nothing that is only read ends with one of these."""
_ADVICE = {
    **dict.fromkeys(_FULL, "Free some space, or name another place"),
    errno.EFBIG: "No file may be as large there: name another place, or raise the limit (`ulimit -f`)",
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "Name a place that you may write to"),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), "A file stands where a folder should be: name another place"),
    errno.EISDIR: "A folder has that name: name another",
    errno.ENAMETOOLONG: "Choose a shorter name",
}
_ERROR_OF_RUST = re.compile(r"\(os error (\d+)\)")
"""safetensors and tokenizers have errors of their own, which end like this."""


@contextmanager
def atomic_path(path: Path, durable: bool = True) -> Iterator[Path]:
    """Give a path to write to; what is written takes the name ``path`` when the block ends without an error.

    Its folder is made if need be.

    Args:
        path: the name.
        durable: wait until the disk has it, so that it outlasts a loss of power too.

    Raises:
        StorageError: it cannot be written; what was there before still is.
    """
    with _hidden(path) as partial:
        yield partial
        with _told(path):
            # Without it a journal may have the new name before the data: after a power cut the file would be empty.
            if durable:
                _flush(partial)
            os.replace(partial, path)
            if durable:
                _flush_folder(path.parent)


@contextmanager
def atomic_file(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a file for writing; see :func:`atomic_path`."""
    with atomic_path(path, durable) as partial, open(partial, "wb") as file:
        yield file


def write_atomically(path: Path, data: bytes | str, durable: bool = True) -> None:
    """Write a file whole or not at all, a text as UTF-8; see :func:`atomic_path`."""
    with atomic_file(path, durable) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def link_or_copy(existing: Path, path: Path) -> None:
    """Let ``path`` be ``existing`` too, without a second copy on disk where the file system has hard links.

    Raises:
        StorageError: it cannot be written; what was there before still is.
    """
    with atomic_path(path) as partial:
        try:
            os.link(existing, partial)
        except OSError:
            shutil.copy2(existing, partial)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder to fill, which takes the name ``folder`` when the block ends without an error.

    Raises:
        ConfigError: something is there already, other than an empty folder.
        StorageError: it cannot be written.
    """
    folder = check_new_folder(folder)
    with _hidden(folder) as partial:
        with _told(folder):
            partial.mkdir()
        yield partial
        with _told(folder):
            for file in partial.rglob("*"):
                if file.is_file():
                    _flush(file)
            # An empty folder was there and may be: renaming onto it is refused by some systems.
            if folder.exists():
                folder.rmdir()
            partial.rename(folder)
            _flush_folder(folder.parent)


def check_new_folder(folder: str | Path) -> Path:
    """Give the folder's path, if nothing is there or an empty folder, and it can be made.

    Raises:
        ConfigError: something is there.
        StorageError: nobody, or not this user, may write there.
    """
    folder = Path(folder).expanduser()
    # Also where nothing will be written since all is done: a process may have been killed just before it tidied up.
    remove_abandoned(folder.parent)
    with _told(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder} exists already; name a new folder, or delete it")
    check_writable(folder.parent)
    return folder


def check_writable(folder: str | Path) -> None:
    """Refuse a folder that could not be written to, before the work whose result would go there.

    Args:
        folder: is not made here.

    Raises:
        StorageError: it, or the nearest folder above it that there is, cannot be written to.
    """
    folder = Path(folder).expanduser()
    with _told(folder):
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(there, os.W_OK | os.X_OK):
            read_only = hasattr(os, "statvfs") and os.statvfs(there).f_flag & os.ST_RDONLY
            number = errno.EROFS if read_only else errno.EACCES
            raise OSError(number, os.strerror(number))


def remove_unfinished(folder: Path, name: str = "*") -> None:
    """Remove what processes that were killed while they wrote left behind.

    Args:
        folder: where.
        name: of the file that they wrote; all, unless given. The caller's lock says that none is writing it now.
    """
    pattern = name if name == "*" else glob.escape(name)
    for ending in (_UNFINISHED, _UNFINISHED_IN_0_1_0):
        for rest in folder.glob(f".{pattern}.*{ending}"):
            _remove(rest)


def remove_abandoned(folder: Path) -> None:
    """Remove what processes that are gone left in a folder; what may be under way stays."""
    with contextlib.suppress(OSError):  # to tidy up is no reason to fail
        for rest in folder.glob(f".*{_UNFINISHED}"):
            if _is_abandoned(rest):
                _remove(rest)


@functools.cache
def tidy_once(folder: Path) -> None:
    """Do :func:`remove_abandoned` where this process has not yet; every writing does it, and what finds all done may.

    Once, since listing a folder of many files takes its time.
    """
    remove_abandoned(folder)


@contextmanager
def storage_errors(place: str, read_too: bool = False) -> Iterator[None]:
    """Turn errors of a full or read-only disk, inside the block, into the package's own.

    Args:
        place: what is said to be written where the error names no file.
        read_too: also those of any file or folder that the error names, which may be one that is read.

    Raises:
        StorageError: the disk is full or read-only.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, GitLLMError):
            raise
        if error.errno in _OF_WRITING:
            raise storage_error(error.filename or place, error) from error
        if read_too and error.filename and error.strerror:
            raise StorageError(f"{error.filename} cannot be used: {error.strerror}") from error
        raise


def storage_error(path: str | Path, error: Exception) -> StorageError:
    """Make the error for a file that cannot be written, with what to do.

    Args:
        path: the file or folder.
        error: why; of an error of torch, which says nothing of the disk, the first line is shown.
    """
    number = _number_of(error)
    reason = os.strerror(number) if number else first_line(error)
    free = ""
    if number is None or number in _FULL:
        there = next((above for above in Path(path).absolute().parents if above.is_dir()), None)
        free = "" if there is None else f" ({shutil.disk_usage(there).free / 1e6:,.0f} MB are free there)"
    advice = _ADVICE.get(number or errno.ENOSPC, "Name another place")
    return StorageError(f"{path} cannot be written: {reason}{free}. What was there before is whole. {advice}.")


@contextmanager
def _hidden(path: Path) -> Iterator[Path]:
    """Give a path in a hidden folder beside ``path``, which is removed at the end."""
    # Beside the target, since only within a file system is renaming one step; named by host and process, since
    # several may write the same file, on a disk that several machines share.
    hidden = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}{_UNFINISHED}")
    with _told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        tidy_once(path.parent.absolute())
        # An earlier process of this number may have been killed here.
        _remove(hidden)
        hidden.mkdir()
    try:
        yield hidden / _CONTENT
    except Exception as error:
        if isinstance(error, GitLLMError) or not _is_of_writing(error, hidden):
            raise
        raise storage_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # the error that is under way says more
            _remove(hidden)


@contextmanager
def scratch_folder(beside: Path) -> Iterator[Path]:
    """Give an empty folder beside a path for files of this process, removed at the end or, of a killed one, later."""
    with _hidden(beside) as folder:
        folder.mkdir()
        yield folder


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Tell every error of the system's, inside the block, as one about writing ``path``."""
    try:
        yield
    except OSError as error:
        raise storage_error(path, error) from error


def _is_of_writing(error: Exception, hidden: Path) -> bool:
    """Tell errors of writing into a folder from those of whatever else is done meanwhile."""
    if _number_of(error) in _OF_WRITING:
        return True
    named = error.filename if isinstance(error, OSError) else None
    return isinstance(named, (str, os.PathLike)) and hidden in Path(named).parents


def _number_of(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    found = _ERROR_OF_RUST.search(str(error))
    return int(found[1]) if found else None


def _is_abandoned(rest: Path) -> bool:
    owner, _, process = rest.name.removesuffix(_UNFINISHED).rpartition(".")
    if owner.endswith(f".{socket.gethostname()}") and process.isdecimal():
        return not is_running(int(process))
    # Another machine's, or that of a container which is gone: nobody can be asked.
    return time.time() - rest.lstat().st_mtime > _SECONDS_OF_OTHER_HOSTS


def _remove(rest: Path) -> None:
    if rest.is_dir() and not rest.is_symlink():
        shutil.rmtree(rest)
    else:
        rest.unlink(missing_ok=True)


def _flush(file: Path) -> None:
    # A hard link of a file that is write-protected cannot be opened for writing; Windows flushes no other.
    with open(file, "rb" if os.name == "posix" else "rb+") as opened:
        os.fsync(opened.fileno())


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

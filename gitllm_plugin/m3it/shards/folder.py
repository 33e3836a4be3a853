"""A folder of shards on this machine, on a server or in a bucket, read record by record.

Records are read at random from files on a disk. Shards that are elsewhere are fetched whole into a cache first and
checked against the manifest: one way to read serves all, a place in training is found again without reading up to it,
and the second epoch fetches nothing. Files of the cache are named by their content's hash, so folders may share one,
and so may the processes of a machine.
"""

import hashlib
import os
import tarfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
from filelock import FileLock

from gitllm_plugin.common.files import atomic_file, remove_unfinished
from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it.group import Group
from gitllm_plugin.m3it.problems import RowError
from gitllm_plugin.m3it.shards.fetch import fetch
from gitllm_plugin.m3it.shards.format import MANIFEST_NAME, Manifest, Shard, read_group, read_manifest
from gitllm_plugin.m3it.shards.mixture import TAR_BLOCK, Item

FETCH_ATTEMPTS = 3
SECONDS_BETWEEN_ATTEMPTS = 1.0
MAX_OPEN_FILES = 256
MOST_MANIFEST_BYTES = 2**28
"""Of one that is fetched: ten times what the 2.4 million rows of M3IT need."""


def default_cache() -> Path:
    """Return where shards are kept that were fetched, unless something else is asked for."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "gitllm" / "shards"


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
        return {"_files": {}}  # numbers of files that another process does not have

    def __del__(self) -> None:
        for file in self._files.values():
            os.close(file)

    def get(self, name: str, find: Callable[[], Path]) -> int:
        """Return the descriptor of a file.

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


class ShardFolder:
    """What ``gitllm m3it shard`` wrote.

    Objects can be forked or pickled into the workers of a data loader: each process opens files for itself.

    Args:
        location: a folder, or a URL that fsspec opens: ``https://``, ``s3://``, ``gs://``, ...
        cache_dir: where shards are copied to before they are read. None: those of a folder are read where they are,
            others go to :func:`default_cache`.
    """

    def __init__(self, location: str, cache_dir: str | Path | None = None):
        self.is_remote = "://" in location
        self.location = location.rstrip("/") if self.is_remote else os.path.abspath(os.path.expanduser(location))
        # A folder on slow network storage is worth a copy too, if one is asked for.
        copies = self.is_remote or cache_dir is not None
        self.cache_dir = Path(cache_dir or default_cache()).expanduser().absolute() if copies else None
        self._files = OpenFiles()

    def read_manifest(self) -> Manifest:
        """Read what the folder holds.

        Raises:
            DataError: if there is no manifest, or not one of this format.
        """
        if not self.is_remote:
            return read_manifest(self.location)
        place = f"{self.location}/{MANIFEST_NAME}"
        try:
            content = orjson.loads(b"".join(fetch(place, MOST_MANIFEST_BYTES)))
        except Exception as error:  # each file system has errors of its own
            raise DataError(f"{place} cannot be read: {_describe(error)}") from error
        return read_manifest(content)

    def find_missing(self, shards: list[Shard]) -> list[str]:
        """Find what is wrong with the files of a local folder, as far as sizes show it; nothing is read."""
        problems = []
        for shard in [] if self.is_remote else shards:
            path = Path(self.location, shard.file)
            size = path.stat().st_size if path.is_file() else None
            if size != shard.bytes:
                problems.append(f"{path} " + ("is missing" if size is None else f"has {size} of {shard.bytes} bytes"))
        return problems

    def read(self, item: Item) -> Group:
        """Read the record of an item.

        Raises:
            RowError: of kind ``shard`` if the file is missing, cannot be fetched or breaks off, of kind ``record`` if
                the record is not what was written.
        """
        place = _place(self.location, item)
        file = self._open(item.shard, place)
        return _read_record(_read(file, item.size, item.offset, place), place)

    def read_texts(self, item: Item) -> Group:
        """Read the record of an item without its images, whose bytes are not read; the group has none.

        Raises:
            RowError: as :meth:`read`.
        """
        place = _place(self.location, item)
        file = self._open(item.shard, place)
        offset, end = item.offset, item.offset + item.size
        # The JSON stands last, behind images that are stepped over by their headers.
        while offset < end:
            member = _parse_header(_read(file, TAR_BLOCK, offset, place), end - offset - TAR_BLOCK, place)
            offset += TAR_BLOCK
            if member.name.endswith(".json"):
                members = {member.name: _read(file, member.size, offset, place)}
                return _parse_record(members, place, with_images=False)
            offset += _padded(member.size)
        return _parse_record({}, place)  # raises

    def _open(self, shard: Shard, place: str) -> int:
        """Open a shard, and return its file descriptor."""

        def find() -> Path:
            if self.cache_dir is not None:
                return self._fetch(shard, place)
            path = Path(self.location, shard.file)
            if path.exists() and not path.is_file():  # opening a pipe would wait for whoever writes into it
                raise OSError(f"{path} is not a file")
            return path

        try:
            return self._files.get(shard.file, find)
        except OSError as error:
            raise RowError("shard", f"the file cannot be opened ({error}); {_ADVICE}", place) from error

    def _fetch(self, shard: Shard, place: str) -> Path:
        """Copy a shard into the cache unless it is there; one process of a machine does it for all."""
        assert self.cache_dir is not None
        path = self.cache_dir / f"{shard.sha256}.tar"
        if path.is_file():
            return path
        self.cache_dir.mkdir(parents=True, exist_ok=True)
        # Processes that waited for the lock find the file there.
        with FileLock(path.with_suffix(".lock")):
            for attempt in range(FETCH_ATTEMPTS):
                if path.is_file():
                    break
                remove_unfinished(path.parent, path.name)
                try:
                    self._copy(shard, path)
                except Exception as error:  # each file system has errors of its own
                    # A library that is missing is missing at the next attempt too.
                    if attempt == FETCH_ATTEMPTS - 1 or isinstance(error, ImportError):
                        raise RowError("shard", f"the file cannot be fetched: {_describe(error)}", place) from error
                    time.sleep(SECONDS_BETWEEN_ATTEMPTS * 2**attempt)
        return path

    def _copy(self, shard: Shard, path: Path) -> None:
        digest = hashlib.sha256()
        # A proxy's error page and a download that broke off have other hashes; nothing unchecked gets the file's name.
        with atomic_file(path) as target:
            for piece in fetch(f"{self.location}/{shard.file}", shard.bytes):
                digest.update(piece)
                target.write(piece)
            if digest.hexdigest() != shard.sha256:
                raise DataError(f"it has the hash {digest.hexdigest()}, the manifest says {shard.sha256}")


_ADVICE = "copy the file again from where it was made, or make the shards again"


def _place(location: str, item: Item) -> str:
    return f"{location}/{item.shard.file}, record {item.record}"


def _read(file: int, size: int, offset: int, place: str) -> bytes:
    # At an offset of its own: threads and forks that share the descriptor do not move each other's position.
    # Memory for what is read is taken first: no more than the file has.
    data = os.pread(file, size, offset) if offset + size <= os.fstat(file).st_size else b""
    if len(data) < size:
        raise RowError("shard", f"the file ends before the record does; {_ADVICE}", place)
    return data


def _read_record(data: bytes, place: str) -> Group:
    members, offset = {}, 0
    while offset < len(data):
        begin = offset + TAR_BLOCK
        member = _parse_header(data[offset:begin], len(data) - begin, place)
        members[member.name] = data[begin : begin + member.size]
        offset = begin + _padded(member.size)
    return _parse_record(members, place)


def _parse_header(data: bytes, left: int, place: str) -> tarfile.TarInfo:
    """Read a member's header, behind which its record has so many bytes left."""
    try:
        # Not tarfile.open: it reads headers up to a place, here the place is known, and follows what they say.
        member = tarfile.TarInfo.frombuf(data, "utf-8", "replace")
    except (tarfile.HeaderError, ValueError, OverflowError) as error:
        raise RowError("record", f"not a record ({error}); {_ADVICE}", place) from error
    # Sizes below zero would be read for ever, links and extended headers stand for bytes that are elsewhere.
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise RowError("record", f"its member {member.name!r} is no plain file; {_ADVICE}", place)
    if not 0 <= member.size <= left:
        what = f"its member {member.name!r} says that it has {member.size:.4g} bytes, where {left} are left"
        raise RowError("record", f"{what}; {_ADVICE}", place)
    return member


def _padded(size: int) -> int:
    return -(-size // TAR_BLOCK) * TAR_BLOCK


def _parse_record(members: Mapping[str, bytes], place: str, with_images: bool = True) -> Group:
    try:
        return read_group(members, place, with_images)
    except DataError as error:
        raise RowError("record", str(error).removeprefix(f"{place}: "), place) from error


def _describe(error: Exception) -> str:
    needed = " (pip install 'gitllm-plugin[remote]')" if isinstance(error, ImportError) else ""
    return f"{type(error).__name__}: {error}{needed}"

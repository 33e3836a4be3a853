"""Making the shards of one part of a file."""

import hashlib
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from gitllm_plugin.common.files import atomic_file, write_atomically
from gitllm_plugin.m3it.example import Group
from gitllm_plugin.m3it.problems import Problem
from gitllm_plugin.m3it.scan import Part
from gitllm_plugin.m3it.shards.format import add_to_tar, write_group
from gitllm_plugin.m3it.shards.images import prepare_image
from gitllm_plugin.m3it.shards.plan import Settings, note_path, shard_path
from gitllm_plugin.m3it.shards.window import join_groups
from gitllm_plugin.m3it.tables import open_table

_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class PartTask:
    """One part to be made.

    Attributes:
        part: the range of a file.
        work: the folder to write to.
        number: of the part.
        settings: what changes the bytes.
    """

    part: Part
    work: Path
    number: int
    settings: Settings


@dataclass
class _Counts:
    """What a shard has."""

    records: list[int] = field(default_factory=list)  # blocks of each
    texts: list[int] = field(default_factory=list)
    images: int = 0


def make_part(task: PartTask) -> int:
    """Writes the shards of a part, then the note that says it is done. Returns the bytes of the file that it is.

    At most a window of images (64 MB) and one record are in memory.
    """
    problems: list[Problem] = []
    own_ids: list[tuple[int, str]] = []
    shards = []
    groups = join_groups(_read_groups(task, problems, own_ids))
    group = next(groups, None)
    while group is not None:
        path = shard_path(task.work, task.number, len(shards))
        facts, group = _write_shard(path, group, groups, task.settings.max_size)
        shards.append(facts)
    note = {
        "shards": shards,
        "skips": dict(sorted(Counter(problem.kind for problem in problems).items())),
        "problems": [[each.file, each.line, each.kind, each.message] for each in problems],
        "ids": own_ids,
    }
    write_atomically(note_path(task.work, task.number), orjson.dumps(note))
    return task.part.bytes


def _read_groups(task: PartTask, problems: list[Problem], own_ids: list[tuple[int, str]]) -> Iterator[Group]:
    part, settings = task.part, task.settings
    prepare = partial(prepare_image, short_side=settings.resize_short_side, max_pixels=settings.max_pixels)
    for row in open_table(part.path).rows(part.start, part.end, part.first_line):
        group, errors = part.reader.read(row.content, row.line, prepare)
        problems += [Problem(part.name, row.line, error.kind, error.message) for error in errors]
        if group is not None:
            if part.reader.adapter == "uniform":
                own_ids.append((row.line, group.texts[0].id))
            yield group


def _write_shard(
    path: Path, group: Group, groups: Iterator[Group], max_size: int
) -> tuple[dict[str, Any], Group | None]:
    """Fills one tar file. Returns what it has, and the first group that did not fit."""
    counts = _Counts()
    following: Group | None = group
    with atomic_file(path) as file:
        hashed = _HashedFile(file)
        # GNU's format, as names that are too long are refused before: no headers that depend on the library.
        with tarfile.open(fileobj=hashed, mode="w", format=tarfile.GNU_FORMAT) as tar:  # type: ignore[arg-type]
            while following is not None:
                members = write_group(following)
                if counts.records and _file_size(tar.offset + _record_size(members)) > max_size:
                    break
                counts.records.append(add_to_tar(tar, members))
                counts.texts.append(len(following.texts))
                counts.images += len(following.images)
                following = next(groups, None)
    facts = {
        "sha256": hashed.digest.hexdigest(),
        "groups": len(counts.records),
        "texts": sum(counts.texts),
        "images": counts.images,
        "bytes": hashed.size,
        "record_blocks": " ".join(map(str, counts.records)),
        "record_texts": " ".join(map(str, counts.texts)),
    }
    return facts, following


class _HashedFile:
    """A file that is written once from start to end, and its SHA-256."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self.size


def _record_size(members: list[tuple[str, bytes]]) -> int:
    return sum(_BLOCK + -(-len(data) // _BLOCK) * _BLOCK for _, data in members)


def _file_size(used: int) -> int:
    """The size of a tar file whose records take so many bytes: two empty blocks, then up to a multiple of twenty."""
    return -(-(used + 2 * _BLOCK) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE

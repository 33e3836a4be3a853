"""Making the shards of a tree: alone, or as one of several processes.

Slices are made on their own, whoever makes them, and a note is written when one is done. What follows is cheap: the
shards of all slices of a split are renamed in order, and the split is entered into the manifest.
"""

import hashlib
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from gitllm_plugin.common.files import atomic_file
from gitllm_plugin.common.processes import map_in_order
from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it.group import Group, join_groups, longest_text
from gitllm_plugin.m3it.images import prepare_image
from gitllm_plugin.m3it.problems import Problem
from gitllm_plugin.m3it.scan import Slice
from gitllm_plugin.m3it.shards.format import (
    MANIFEST_NAME,
    SKIPS_NAME,
    Manifest,
    Shard,
    SplitManifest,
    add_to_tar,
    read_manifest,
    write_group,
    write_manifest,
)
from gitllm_plugin.m3it.shards.plan import (
    Settings,
    SplitPlan,
    choose_share,
    make_plan,
)
from gitllm_plugin.m3it.shards.work import (
    clear_split,
    drop_finished,
    note_path,
    read_note,
    read_plan,
    remove_work,
    shard_path,
    unfinished_splits,
    work_folder,
    write_noted,
)
from gitllm_plugin.m3it.tables import open_table
from gitllm_plugin.m3it.tree import Tree

_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class SliceTask:
    """One slice to be made.

    Attributes:
        slice: the range of a file.
        work: the folder to write to.
        number: of the slice within its split.
        settings: what changes the bytes.
    """

    slice: Slice
    work: Path
    number: int
    settings: Settings


@dataclass
class _Counts:
    """What a shard has."""

    records: list[int] = field(default_factory=list)  # blocks of each
    texts: list[int] = field(default_factory=list)
    images: int = 0
    text_bytes: int = 0
    most_images: int = 0


def make_shards(
    tree: Tree,
    out: Path,
    settings: Settings,
    *,
    workers: int = 1,
    share: tuple[int, int] = (0, 1),
    on_start: Callable[[int], object] = lambda total: None,
    on_progress: Callable[[int], object] = lambda done: None,
) -> dict[tuple[str, str], SplitManifest]:
    """Make the shards that are not there yet. It can be killed and called again; the result has the same bytes.

    Args:
        tree: the files.
        out: the folder of the shards.
        settings: what changes their bytes.
        workers: number of processes, which changes nothing but the time.
        share: which of how many processes this is, from 0. With more than one, splits are not finished: call
            :func:`merge` when all are done.
        on_start: is told how many bytes are to be read.
        on_progress: is told how many bytes more were read.

    Returns:
        The splits that were finished.

    Raises:
        ConfigError: if ``out`` holds shards that were made with other settings.
        DataError: if a file cannot be read at all.
    """
    # First, since what is left of a finished split would look like one that is under way.
    drop_finished(out)
    plans = make_plan(tree, out, settings)
    unfinished = {id(plan): set(plan.unfinished()) for plan in plans}
    todo = [(plan, number) for plan, number in choose_share(plans, share) if number in unfinished[id(plan)]]
    on_start(round(sum(plan.weights[number] for plan, number in todo)))
    finished: dict[tuple[str, str], SplitManifest] = {}
    waiting = [plan for plan in plans if not plan.is_done] if share[1] == 1 else []
    results = map_in_order(make_slice, _make_tasks(tree, todo, settings), workers)
    for (plan, number), done in zip(todo, results, strict=True):
        on_progress(done)
        unfinished[id(plan)].discard(number)
        # Slices end in order, so splits do too, and each is finished as soon as it can be: killed later, it is there.
        while waiting and not unfinished[id(waiting[0])]:
            _finish(out, waiting.pop(0), finished)
    for plan in waiting:
        _finish(out, plan, finished)
    remove_work(out)
    return finished


def merge(out: Path) -> dict[tuple[str, str], SplitManifest]:
    """Finish every split whose slices were made by several processes.

    Raises:
        DataError: if slices are missing (all splits that are whole are finished first), or there is nothing to do.
    """
    finished, problems = {}, []
    drop_finished(out)
    splits = unfinished_splits(out)
    if not splits and not (out / MANIFEST_NAME).is_file():
        raise DataError(f"there are no shards below {out}. Make them with `gitllm m3it shard ROOT {out} --part i/n`.")
    # All that are whole are finished before anything is said of the others: a share that is missing is made alone.
    for config, split in splits:
        try:
            finished[config, split] = finish_split(out, config, split)
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    remove_work(out)
    return finished


def finish_split(out: Path, config: str, split: str) -> SplitManifest:
    """Give the shards of a split their names, enter it into the manifest and remove what is not needed any more.

    It can be killed and called again.

    Raises:
        DataError: if slices are missing, or rows of different slices have the same id.
    """
    work = work_folder(out, config, split)
    plan = read_plan(work)
    if plan is None:
        raise DataError(f"{config}/{split}: {work} has no plan; run `gitllm m3it shard` again")
    numbers = range(len(plan["parts"]))
    missing = [number for number in numbers if not note_path(work, number).is_file()]
    if missing:
        raise DataError(_explain_missing(f"{config}/{split}", missing, len(numbers)))
    notes = [read_note(work, number) for number in numbers]
    _check_ids(f"{config}/{split}", notes)
    shards = tuple(_name_shards(out, config, split, notes))
    # Not durable: it is for people, and no shard depends on it.
    with atomic_file(out / config / split / SKIPS_NAME, durable=False) as file:
        for note in notes:
            for name, line, kind, message in note["problems"]:
                file.write(orjson.dumps({"file": name, "line": line, "kind": kind, "message": message}) + b"\n")
    skips = Counter[str]()
    for note in notes:
        skips.update(note["skips"])
    result = SplitManifest(shards, dict(sorted(skips.items())), tuple(plan["sources"]), plan["settings"])
    manifest = read_manifest(out) if (out / MANIFEST_NAME).is_file() else Manifest({})
    manifest.configs.setdefault(config, {})[split] = result
    # The manifest before the notes go: whatever kills the process, one of them says what the shards are.
    write_manifest(manifest, out)
    clear_split(out, config, split)
    return result


def make_slice(task: SliceTask) -> int:
    """Write the shards of a slice, then the note that says it is done. Return the bytes of the file that it is.

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
    # Last: the note is what says that the slice is done.
    write_noted(note_path(task.work, task.number), note)
    return task.slice.bytes


def _name_shards(out: Path, config: str, split: str, notes: list[dict[str, Any]]) -> Iterator[Shard]:
    """Rename the shards of all slices, in order, and say what each is."""
    work, target = work_folder(out, config, split), out / config / split
    target.mkdir(parents=True, exist_ok=True)
    number = 0
    for slice_number, note in enumerate(notes):
        for index, facts in enumerate(note["shards"]):
            source, path = shard_path(work, slice_number, index), target / f"{number:06d}.tar"
            # Where it is not there, a process has renamed it and was killed before the manifest was written.
            if source.is_file():
                os.replace(source, path)
            if not path.is_file() or path.stat().st_size != facts["bytes"]:
                raise DataError(
                    f"{path} is missing or is not what slice {slice_number} wrote. Delete {work} and {target}, and "
                    "make the shards again."
                )
            yield Shard(file=path.relative_to(out).as_posix(), **facts)
            number += 1


def _check_ids(what: str, notes: list[dict[str, Any]]) -> None:
    """Compare the ids of rows that have ids of their own, which slices cannot do among each other."""
    places: dict[str, int] = {}
    for note in notes:
        for line, row_id in note["ids"]:
            other = places.get(row_id)
            places[row_id] = line
            if other is not None:
                raise DataError(
                    f"{what}: id {row_id!r} of line {line} is also that of line {other}; ids must be unique in a "
                    "split. Change the rows, and delete the unfinished split in .work."
                )


def _explain_missing(what: str, missing: list[int], total: int) -> str:
    some = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
    return (
        f"{what}: {len(missing)} of {total} parts are not made yet ({some}). Run the command again for every --part "
        "i/n that did not end well, then merge again."
    )


def _finish(out: Path, plan: SplitPlan, finished: dict[tuple[str, str], SplitManifest]) -> None:
    key = plan.files.config, plan.files.split
    finished[key] = finish_split(out, *key)


def _make_tasks(tree: Tree, todo: list[tuple[SplitPlan, int]], settings: Settings) -> Iterator[SliceTask]:
    """Give the slices the number of their first line, which is counted file by file as they are needed."""
    for _, of_file in groupby(todo, key=lambda item: (id(item[0]), item[0].ranges[item[1]][0])):
        same = list(of_file)
        plan, file = same[0][0], same[0][0].ranges[same[0][1]][0]
        path, reader = plan.files.paths[file], plan.files.readers[file]
        # Counting lines reads the file up to the last slice, so it is done once for all of a file's slices.
        first_lines = open_table(path).first_lines([plan.ranges[number][1] for _, number in same])
        for (_, number), first_line in zip(same, first_lines, strict=True):
            _, start, end = plan.ranges[number]
            piece = Slice(path, tree.relative(path), reader, start, end, first_line, round(plan.weights[number]))
            yield SliceTask(piece, plan.work, number, settings)


def _read_groups(task: SliceTask, problems: list[Problem], own_ids: list[tuple[int, str]]) -> Iterator[Group]:
    piece, settings = task.slice, task.settings
    # Images are decoded even where they stay as they are: what is broken would else be found in the middle of training.
    prepare = partial(prepare_image, short_side=settings.resize_short_side, max_pixels=settings.max_pixels)
    for row in open_table(piece.path).rows(piece.start, piece.end, piece.first_line):
        group, errors = piece.reader.read(row.content, row.line, prepare)
        problems += [Problem(piece.name, row.line, error.kind, error.message) for error in errors]
        if group is not None:
            if piece.reader.form.has_ids:
                own_ids.append((row.line, group.texts[0].id))
            yield group


def _write_shard(
    path: Path, group: Group, groups: Iterator[Group], max_size: int
) -> tuple[dict[str, Any], Group | None]:
    """Fill one tar file. Return what it has, and the first group that did not fit."""
    counts = _Counts()
    following: Group | None = group
    with atomic_file(path) as file:
        hashed = _HashedFile(file)
        # GNU's format, as names that are too long are refused before: no headers that depend on the library.
        with tarfile.open(fileobj=hashed, mode="w", format=tarfile.GNU_FORMAT) as tar:  # type: ignore[arg-type]
            while following is not None:
                members = write_group(following)
                # A record that is larger than a shard may be gets one of its own.
                if counts.records and _file_size(tar.offset + _record_size(members)) > max_size:
                    break
                counts.records.append(add_to_tar(tar, members))
                counts.texts.append(len(following.texts))
                counts.images += len(following.images)
                counts.text_bytes = max(counts.text_bytes, longest_text(following.texts))
                counts.most_images = max(counts.most_images, len(following.images))
                following = next(groups, None)
    facts = {
        "sha256": hashed.digest.hexdigest(),
        "groups": len(counts.records),
        "texts": sum(counts.texts),
        "images": counts.images,
        "bytes": hashed.size,
        "record_blocks": " ".join(map(str, counts.records)),
        "record_texts": " ".join(map(str, counts.texts)),
        "text_bytes": counts.text_bytes,
        "most_images": counts.most_images,
    }
    return facts, following


class _HashedFile:
    """A file that is written once from start to end, and its SHA-256, without reading it again."""

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
    """Compute a tar file's size from that of its records: two empty blocks, then up to a multiple of twenty."""
    return -(-(used + 2 * _BLOCK) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE

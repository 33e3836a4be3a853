"""From finished parts to a finished split, and to the manifest."""

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from gitllm_plugin.common.files import atomic_file
from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it.shards.format import (
    MANIFEST_NAME,
    SKIPS_NAME,
    Manifest,
    Shard,
    SplitManifest,
    read_manifest,
    write_manifest,
)
from gitllm_plugin.m3it.shards.plan import WORK_NAME, note_path, shard_path


def finish_split(out: Path, config: str, split: str) -> SplitManifest:
    """Gives the shards of a split their names, enters it into the manifest and removes what is not needed any more.

    It can be killed and called again.

    Raises:
        DataError: if parts are missing, or rows of different parts have the same id.
    """
    work = out / WORK_NAME / config / split
    plan = orjson.loads((work / "plan.json").read_bytes())
    numbers = range(len(plan["parts"]))
    missing = [number for number in numbers if not note_path(work, number).is_file()]
    if missing:
        raise DataError(_explain_missing(f"{config}/{split}", missing, len(numbers)))
    notes = [orjson.loads(note_path(work, number).read_bytes()) for number in numbers]
    _check_ids(f"{config}/{split}", notes)
    shards = tuple(_name_shards(out, config, split, notes))
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
    write_manifest(manifest, out)
    shutil.rmtree(work)
    return result


def unfinished_splits(out: Path) -> list[tuple[str, str]]:
    """Configuration and split of all that is under way, in order."""
    plans = sorted((out / WORK_NAME).glob("*/*/plan.json"))
    return [(path.parts[-3], path.parts[-2]) for path in plans]


def merge(out: Path) -> dict[tuple[str, str], SplitManifest]:
    """Finishes every split whose parts were made by several processes.

    Raises:
        DataError: if parts are missing (all splits that are whole are finished first), or there is nothing to do.
    """
    finished, problems = {}, []
    drop_finished(out)
    splits = unfinished_splits(out)
    if not splits and not (out / MANIFEST_NAME).is_file():
        raise DataError(f"there are no shards below {out}. Make them with `gitllm m3it shard ROOT {out} --part i/n`.")
    for config, split in splits:
        try:
            finished[config, split] = finish_split(out, config, split)
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    remove_work(out)
    return finished


def drop_finished(out: Path) -> None:
    """Removes what is left of splits that are in the manifest, where a process was killed just then."""
    if (out / MANIFEST_NAME).is_file():
        for config, splits in read_manifest(out).configs.items():
            for split in splits:
                shutil.rmtree(out / WORK_NAME / config / split, ignore_errors=True)


def remove_work(out: Path) -> None:
    """Removes the folders that are empty when all is done."""
    work = out / WORK_NAME
    for folder in [*work.glob("*"), work]:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _name_shards(out: Path, config: str, split: str, notes: list[dict[str, Any]]) -> Iterator[Shard]:
    """Renames the shards of all parts, in order, and says what each is."""
    work, target = out / WORK_NAME / config / split, out / config / split
    target.mkdir(parents=True, exist_ok=True)
    number = 0
    for part, note in enumerate(notes):
        for index, facts in enumerate(note["shards"]):
            source, path = shard_path(work, part, index), target / f"{number:06d}.tar"
            if source.is_file():
                os.replace(source, path)
            if not path.is_file() or path.stat().st_size != facts["bytes"]:
                raise DataError(
                    f"{path} is missing or is not what part {part} wrote. Delete {work} and {target}, and make the "
                    "shards again."
                )
            yield Shard(file=path.relative_to(out).as_posix(), **facts)
            number += 1


def _check_ids(what: str, notes: list[dict[str, Any]]) -> None:
    """Rows in the uniform schema may have ids of their own, which parts cannot compare among each other."""
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

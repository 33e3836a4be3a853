"""The folder in which shards are made, ``OUT/.work``: what lies there, and how it is cleared.

Names of what is cleared come from a manifest or from folders that somebody else may have written. So nothing is deleted
but files that making a split writes, by their names, in a folder that has a split's plan and is no link.
"""

import contextlib
import re
import zlib
from pathlib import Path
from typing import Any

import orjson

from gitllm_plugin.common.files import remove_abandoned, write_atomically
from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it.shards.format import MANIFEST_NAME, is_name, read_manifest

WORK_NAME = ".work"
PLAN_NAME = "plan.json"
_SUM = "crc32"

_MADE = r"plan\.json|\d{6,}\.json|\d{6,}\.\d{3,}\.tar"
_OWN = re.compile(rf"(?:{_MADE})|\.(?:{_MADE})\..+\.partial")
"""Names of what making a split writes: files that are whole, and hidden folders of those that are half written."""


def work_folder(out: Path, config: str, split: str) -> Path:
    """Return where a split's slices are made."""
    return out / WORK_NAME / config / split


def note_path(work: Path, number: int) -> Path:
    """Return the file that says what a slice is; it is there when the slice is done."""
    return work / f"{number:06d}.json"


def shard_path(work: Path, number: int, shard: int) -> Path:
    """Return the file of a shard of a slice, until its split is done."""
    return work / f"{number:06d}.{shard:03d}.tar"


def check_own(out: Path, work: Path) -> None:
    """Refuse a folder below ``OUT/.work`` that is elsewhere.

    Raises:
        DataError: a part of its path is a link.
    """
    if link := _link_in(out, work):
        raise DataError(f"{link} is a link; shards are made in a folder of their own: delete the link")


def read_plan(work: Path) -> dict[str, Any] | None:
    """Read how a split is made; None where it is not under way.

    Raises:
        DataError: what is there is no plan.
    """
    path = work / PLAN_NAME
    return _read(path, {"parts": list, "sources": list, "settings": dict}) if path.is_file() else None


def read_note(work: Path, number: int) -> dict[str, Any]:
    """Read what a slice is.

    Raises:
        DataError: what is there is no note of a slice.
    """
    return _read(note_path(work, number), {"shards": list, "skips": dict, "problems": list, "ids": list})


def write_noted(path: Path, content: dict[str, Any], durable: bool = True) -> None:
    """Write a plan or a note, with a sum by which :func:`read_plan` and :func:`read_note` know damage."""
    noted = {**content, _SUM: _sum_of(content)}
    write_atomically(path, orjson.dumps(noted, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS), durable)


def unfinished_splits(out: Path) -> list[tuple[str, str]]:
    """List configuration and split of all that is under way, in order.

    Raises:
        DataError: a part of the work folder is a link: what is made and deleted there would be elsewhere.
    """
    plans = sorted((out / WORK_NAME).glob(f"*/*/{PLAN_NAME}"))
    for plan in plans:
        check_own(out, plan.parent)
    found = [(plan.parts[-3], plan.parts[-2]) for plan in plans]
    return [names for names in found if all(map(is_name, names))]


def drop_finished(out: Path) -> None:
    """Remove what is left of splits that are in the manifest, where a process was killed just then."""
    if (out / MANIFEST_NAME).is_file():
        remove_abandoned(out)  # nothing may be left to be written, which would remove it
        for config, splits in read_manifest(out).configs.items():
            for split in splits:
                clear_split(out, config, split)


def clear_split(out: Path, config: str, split: str) -> None:
    """Delete what making a split has written, and the folder where nothing else is in it."""
    work = work_folder(out, config, split)
    plan = work / PLAN_NAME
    if _link_in(out, work) or not plan.is_file():
        return
    # The plan last: it is by the plan that a folder which was not cleared to the end is known.
    own = [path for path in work.iterdir() if _OWN.fullmatch(path.name)]
    for path in sorted(own, key=lambda path: path == plan):
        hidden = path.name.startswith(".") and path.is_dir() and not path.is_symlink()
        for file in path.iterdir() if hidden else [path]:
            if file.is_symlink() or file.is_file():
                file.unlink(missing_ok=True)
        if hidden:
            _remove_if_empty(path)
    _remove_if_empty(work)


def remove_work(out: Path) -> None:
    """Remove the folders that are empty when all is done."""
    work = out / WORK_NAME
    for folder in [*work.glob("*/*"), *work.glob("*"), work]:
        if folder.is_dir() and not _link_in(out, folder):
            _remove_if_empty(folder)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _link_in(out: Path, folder: Path) -> Path | None:
    """Find the first link on the way from OUT to a folder."""
    parts = folder.relative_to(out).parts
    return next((path for n in range(len(parts)) if (path := out.joinpath(*parts[: n + 1])).is_symlink()), None)


def _sum_of(content: dict[str, Any]) -> int:
    return zlib.crc32(orjson.dumps(content, option=orjson.OPT_SORT_KEYS))


def _read(path: Path, kinds: dict[str, type]) -> dict[str, Any]:
    try:
        content = orjson.loads(path.read_bytes())
        # What a note says of shards goes into the manifest: a digit that changed would be found in the training.
        is_whole = isinstance(content, dict) and content.pop(_SUM, None) == _sum_of(content)
        if is_whole and all(isinstance(content.get(key), kind) for key, kind in kinds.items()):
            return content
    except orjson.JSONDecodeError:
        pass
    raise DataError(f"{path} is not what `gitllm m3it shard` writes. Delete {path.parent} and make its shards again")

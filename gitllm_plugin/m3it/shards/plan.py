"""Which slice of which file goes into which shards: the same for every process on every machine.

While shards are made, they lie in ``OUT/.work/<config>/<split>/``::

    plan.json             settings, files and slices ("parts"); the first process writes it, all others must agree
    000003.000.tar, ...   the shards of slice 3
    000003.json           what slice 3 is: its shards and what was left out; written last, it says that it is done

A slice is a range of a file, so that a process that was killed has lost one slice and no more, and so that slices can
be made on as many machines as there are: each makes a share of them (``--part i/n``). When all slices of a split are
done, their shards are renamed to
``OUT/<config>/<split>/000000.tar`` and so on, and the split is entered into the manifest.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import PIL

from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.m3it.images import MAX_PIXELS
from gitllm_plugin.m3it.rows import READING_VERSION
from gitllm_plugin.m3it.shards.format import MANIFEST_NAME, Manifest, is_name, read_manifest
from gitllm_plugin.m3it.shards.work import (
    PLAN_NAME,
    WORK_NAME,
    check_own,
    note_path,
    read_plan,
    work_folder,
    write_noted,
)
from gitllm_plugin.m3it.tables import JsonlFile, size_of
from gitllm_plugin.m3it.tree import SplitFiles, Tree

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


@dataclass(frozen=True)
class Settings:
    """What changes the bytes of shards.

    Attributes:
        max_size: no shard is larger, in bytes, unless one record is.
        resize_short_side: pixels of the shorter side to which larger images are made smaller; None for never.
        max_pixels: images with more pixels are left out.
    """

    max_size: int
    resize_short_side: int | None = None
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if self.resize_short_side is not None and self.resize_short_side < 1:
            raise ConfigError(f"the short side is {self.resize_short_side}, expected a number of pixels such as 256")


@dataclass(frozen=True)
class SplitPlan:
    """How one split is made.

    Attributes:
        files: the split's files.
        ranges: each slice: which file, its first position and the position behind its last one.
        facts: settings and files, as the manifest will have them.
        work: where its slices are made.
        is_done: whether the manifest has it.
    """

    files: SplitFiles
    ranges: tuple[tuple[int, int, int], ...]
    facts: dict[str, Any]
    work: Path
    is_done: bool = False

    @cached_property
    def weights(self) -> list[float]:
        """About how many bytes of the files each slice is."""
        per_position = [size_of(table) / max(1, table.end) for table in self.files.tables()]
        return [(end - start) * per_position[number] for number, start, end in self.ranges]

    def unfinished(self) -> list[int]:
        """List the slices that are still to be made."""
        return [] if self.is_done else [n for n in range(len(self.ranges)) if not note_path(self.work, n).is_file()]


def make_plan(tree: Tree, out: Path, settings: Settings) -> list[SplitPlan]:
    """Decide how all splits are made, and note in ``OUT/.work`` what the manifest does not have yet.

    Raises:
        ConfigError: if ``OUT`` holds shards that were made with other settings or of other files.
        DataError: if a file is empty, or a part of ``OUT/.work`` is a link.
    """
    manifest = read_manifest(out) if (out / MANIFEST_NAME).is_file() else Manifest({})
    plans, problems = [], []
    for files in tree.splits:
        _check_name(files.config)
        plan = _plan_split(tree, files, out, settings)
        done = manifest.configs.get(files.config, {}).get(files.split)
        check_own(out, plan.work)
        facts, before = plan.facts, read_plan(plan.work)
        before = before and {key: before[key] for key in ("settings", "sources")}
        # A split that is finished stays as it is with whichever versions it was made; one that is under way must not be
        # made by two of them.
        if done is not None:
            before = {"settings": _without_versions(done.settings), "sources": list(done.sources)}
            facts = {**facts, "settings": _without_versions(facts["settings"])}
        plans.append(replace(plan, is_done=done is not None))
        if before is not None and before != facts:
            problems.append(f"{files.config}/{files.split}: {_explain_difference(before, facts)}")
    if problems:
        raise ConfigError(
            f"{out} holds shards that were made otherwise:\n  " + "\n  ".join(problems) + "\n"
            f"Give the settings they were made with, name another folder, or delete {out / '<config>' / '<split>'} and "
            f"{out / WORK_NAME / '<config>' / '<split>'} with their entry in the manifest."
        )
    for plan in plans:
        if plan.is_done:
            continue
        # Not durable: it can be made again.
        write_noted(plan.work / PLAN_NAME, {**plan.facts, "parts": plan.ranges}, durable=False)
    return plans


def choose_share(plans: Sequence[SplitPlan], share: tuple[int, int]) -> list[tuple[SplitPlan, int]]:
    """Choose the slices that one of several processes makes: a stretch of all, of about the same size for each.

    It does not depend on what is done already: a share is the same when it is made again.

    Args:
        plans: all splits.
        share: which process, from 0, of how many.
    """
    index, count = share
    total = sum(sum(plan.weights) for plan in plans)
    chosen, before = [], 0.0
    for plan in plans:
        for number, weight in enumerate(plan.weights):
            # By its middle: every slice is in exactly one share, wherever shares meet.
            middle = before + weight / 2
            if min(int(middle / total * count), count - 1) == index if total else index == 0:
                chosen.append((plan, number))
            before += weight
    return chosen


def parse_share(text: str) -> tuple[int, int]:
    """Read ``3/16`` as (2, 16): the third of sixteen.

    Raises:
        ConfigError: if it is not of that form.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(f"--part is {text!r}, expected which of how many, from 1/n to n/n, such as 3/16")
    return int(match[1]) - 1, int(match[2])


def parse_size(text: str) -> int:
    """Read ``512MB`` (millions of bytes), ``512MiB`` (2**20), or a plain number of bytes.

    Raises:
        ConfigError: if it is neither, or not above zero.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]I?)?B?\s*", text.upper())
    size = int(float(match[1]) * _UNITS[match[2] or ""]) if match else 0
    if size <= 0:
        raise ConfigError(f"the size is {text!r}, expected a number with a unit such as 512MB, 1GB or 256MiB")
    return size


def _plan_split(tree: Tree, files: SplitFiles, out: Path, settings: Settings) -> SplitPlan:
    ranges, sources = [], []
    for number, (path, table) in enumerate(zip(files.paths, files.tables(), strict=True)):
        # Base64 is a third longer than the bytes that it stands for, and a slice should fill one shard, not one and a
        # bit: five quarters leave room for texts and headers.
        target = settings.max_size * 5 // 4 if isinstance(table, JsonlFile) else settings.max_size
        ranges += [(number, start, end) for start, end in table.cut(target)]
        revision = find_revision(tree.root, path)
        source = {"file": tree.relative(path), "bytes": size_of(table)}
        sources.append({**source, "revision": revision} if revision else source)
        if not table.end:
            raise DataError(f"{path} is empty. Download it again, or remove it.")
    reader = files.readers[0]
    facts = {
        "settings": {
            **asdict(settings),
            "adapter": reader.adapter,
            "seed": reader.seed,
            "text_only": reader.text_only,
            "reading": READING_VERSION,
            "pillow": PIL.__version__ if settings.resize_short_side else None,  # its JPEG has other bytes elsewhere
        },
        "sources": sources,
    }
    return SplitPlan(files, tuple(ranges), facts, work_folder(out, files.config, files.split))


def find_revision(root: Path, path: Path) -> str | None:
    """Find the hub's revision that a file was downloaded from, if the download left a trace of it.

    ``huggingface_hub`` notes it in ``.cache/huggingface/download/`` of a folder that it was told to fill, or in the
    name of its own cache's folder.
    """
    note = root / ".cache" / "huggingface" / "download" / f"{os.path.relpath(path, root)}.metadata"
    if note.is_file():
        return note.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0].strip() or None
    match = re.search(r"/snapshots/([0-9a-f]{40})/", path.as_posix())
    return match[1] if match else None


def _without_versions(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in ("reading", "pillow")}


def _explain_difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    old, new = before["settings"], now["settings"]
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    said = [f"{name} was {old.get(name)!r} and is {new.get(name)!r}" for name in names]
    if before["sources"] != now["sources"]:
        said.append("the files have other names or sizes")
    return ", ".join(said)


def _check_name(config: str) -> None:
    # Names in tar files have room for 100 bytes.
    if not is_name(config):
        raise ConfigError(
            f"the configuration's name is {config!r}; in shards a name has up to 60 letters (a-z), digits, '.', '-' "
            "and '_', and begins with a letter or digit. Rename its folder."
        )

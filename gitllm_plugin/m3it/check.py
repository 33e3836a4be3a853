"""Reading a whole tree: what is there, what is missing, what is broken."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from gitllm_plugin.common.processes import map_in_order
from gitllm_plugin.m3it.images import MAX_PIXELS
from gitllm_plugin.m3it.problems import Problem
from gitllm_plugin.m3it.scan import Look, Scan, ScannedFile, Slice, cut_file, find_duplicates, save_index, scan_slice
from gitllm_plugin.m3it.tables import get_version, open_table, size_of
from gitllm_plugin.m3it.tree import SplitFiles, Tree

SLICE_BYTES = 64 * 2**20
"""How much one process reads at a time."""


@dataclass
class SplitReport:
    """What was found of one split.

    Attributes:
        config: its configuration.
        split: ``train``, ``val`` or ``test``.
        files: relative to the root.
        bytes: their size.
        rows: lines or rows.
        examples: what can be used.
        expected: the catalog's number of examples; None if it is not known.
        images: image files in rows that can be used.
        image_bytes: their size.
        problems: what cannot be used.
    """

    config: str
    split: str
    files: list[str]
    bytes: int
    expected: int | None
    rows: int = 0
    examples: int = 0
    images: int = 0
    image_bytes: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def kinds(self) -> dict[str, int]:
        """How many problems of each kind."""
        return dict(sorted(Counter(problem.kind for problem in self.problems).items()))

    @property
    def agrees(self) -> bool:
        """Whether there are as many examples as the catalog says, or it does not say."""
        return self.expected is None or self.examples == self.expected


@dataclass
class TreeReport:
    """What was found below a root.

    Attributes:
        root: the folder.
        look: how far images were looked at.
        missing: what should be there and is not.
        splits: what is there.
    """

    root: str
    look: Look
    missing: list[str]
    splits: list[SplitReport]

    @property
    def is_good(self) -> bool:
        """Whether nothing is missing or broken, and all counts are the catalog's."""
        return not self.missing and all(split.agrees and not split.problems for split in self.splits)

    def add(self, problems: Mapping[tuple[str, str], Sequence[Problem]]) -> None:
        """Add what was found besides, by configuration and split; counts stay those of the files."""
        for split in self.splits:
            split.problems += problems.get((split.config, split.split), ())

    def to_json(self) -> dict[str, Any]:
        """Make the report for a file: every problem with file, line, kind and message."""
        return {
            "root": self.root,
            "images_checked": self.look,
            "good": self.is_good,
            "missing": self.missing,
            "splits": [
                {
                    **{name: getattr(split, name) for name in _FACTS},
                    "kinds": split.kinds,
                    "problems": [vars(problem) for problem in split.problems],
                }
                for split in self.splits
            ],
        }


_FACTS = ("config", "split", "files", "bytes", "rows", "examples", "expected", "images", "image_bytes")


def check_tree(
    tree: Tree,
    *,
    look: Look = "header",
    workers: int = 1,
    max_pixels: int = MAX_PIXELS,
    index_folder: Path | None = None,
    on_progress: Callable[[int], object] = lambda done: None,
) -> TreeReport:
    """Read every row of a tree.

    Args:
        tree: what was found below a root.
        look: how far images are looked at. ``pixel`` decodes them and finds those that break off; it takes about ten
            times as long.
        workers: number of processes.
        max_pixels: images with more pixels cannot be used.
        index_folder: where to keep what was found, for training from the tree; None for nowhere.
        on_progress: is told how many bytes more were read.
    """
    # By configuration too: one file may belong to two, each with its own form of rows.
    found = {
        (reader.config, path): ScannedFile(path, reader, get_version(open_table(path)), Scan())
        for split in tree.splits
        for path, reader in zip(split.paths, split.readers, strict=True)
    }
    scan = partial(_scan, look, max_pixels)
    # In order, since what is found is put together slice by slice as it comes.
    for key, size, result in map_in_order(scan, _cut_all(tree), workers):
        found[key].scan.add(result)
        on_progress(size)
    report = TreeReport(str(tree.root), look, list(tree.missing), [])
    for split in tree.splits:
        files = [found[split.config, path] for path in split.paths]
        report.splits.append(_report_split(tree, split, files))
        if index_folder is not None:
            for file in files:
                _keep(index_folder, file, look)
    return report


def tree_bytes(tree: Tree) -> int:
    """Sum up the size of all files of a tree, in bytes."""
    return sum(size_of(table) for split in tree.splits for table in split.tables())


def _keep(folder: Path, file: ScannedFile, look: Look) -> None:
    """Keep what was found, if that can be done: a check of hours is not lost for it."""
    # A disk that is full or read-only makes the next start slower and the check no less true.
    try:
        save_index(folder, file, look)
    except OSError as error:
        warnings.warn(f"what was found in {file.path} is not kept for training: {error}", stacklevel=2)


def _scan(look: Look, max_pixels: int, piece: Slice) -> tuple[tuple[str, Path], int, Scan]:
    return (piece.reader.config, piece.path), piece.bytes, scan_slice(piece, look=look, max_pixels=max_pixels)


def _cut_all(tree: Tree) -> Iterator[Slice]:
    for split in tree.splits:
        for path, reader in zip(split.paths, split.readers, strict=True):
            yield from cut_file(path, tree.relative(path), reader, SLICE_BYTES)


def _report_split(tree: Tree, split: SplitFiles, files: list[ScannedFile]) -> SplitReport:
    names = [tree.relative(path) for path in split.paths]
    report = SplitReport(
        split.config, split.split, names, sum(size for file in files for size, _ in file.version), split.expected
    )
    # Only now, since an id may repeat in another slice or file of the split.
    duplicates = find_duplicates(list(zip(names, (file.scan for file in files), strict=True)))
    for file in files:
        report.rows += file.scan.rows
        report.examples += sum(file.scan.texts)
        report.images += file.scan.images
        report.image_bytes += file.scan.image_bytes
        report.problems += file.scan.problems
    report.problems += duplicates
    report.examples -= len(duplicates)  # forms with ids of their own have one text a row
    return report

"""Finding M3IT's files: those that a storage names, or below a folder in any of the forms in which people hold them.

==========================================  =======================================================
``ROOT/data/<category>/<folder>/...``       the tree of the hub (also without ``data/``): raw rows
``ROOT/<name>/<split>.jsonl``               uniform rows
``ROOT/<name>/<split>/state.json``          saved by the ``datasets`` library (``save_to_disk``)
``ROOT/<name>/<split>-*.parquet``           converted to parquet (also ``<split>.parquet`` and ``<split>/*.parquet``)
==========================================  =======================================================

The last three hold any name, also one that is not in the catalog: a data set of one's own.
"""

import glob
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it.adapters import ADAPTERS
from gitllm_plugin.m3it.catalog import BY_NAME, SPLITS, Entry, own_entry
from gitllm_plugin.m3it.rows import INSTRUCTION_FILES, RowReader, read_instructions
from gitllm_plugin.m3it.table_kinds import DELIMITERS, LONGEST_SIGNATURE, PARQUET, SPREADSHEETS, kind_by_bytes
from gitllm_plugin.m3it.tables import Table, open_table

_LABEL_KEY = re.compile(r"(n\d{8}|\d+)[\s:,]+(?=\S)")
_SPLIT_WORDS = {"train": ("train",), "val": ("val", "validation", "dev"), "test": ("test",)}
_SHOWN = 6  # of what is missing where nothing is there
_NUMBERS_PER_FILE = 100_000_000  # more than a file has lines


Storage = str | Sequence[str] | Mapping[str, str | Sequence[str]]


@dataclass(frozen=True)
class Source:
    """One file of rows: JSONL, parquet, or a folder that the ``datasets`` library saved.

    Attributes:
        path: absolute path.
        config: the configuration of all its rows, or None: then each row's ``config`` names it, else the
            folder that the file lies in.
    """

    path: Path
    config: str | None


@dataclass(frozen=True)
class SplitFiles:
    """The files of one split of one configuration, in order.

    Attributes:
        config: its name.
        split: ``train``, ``val`` or ``test``.
        paths: JSONL or parquet files, or folders that ``datasets`` saved.
        readers: of the rows of each.
        expected: number of examples by the catalog; None if it is not known.
    """

    config: str
    split: str
    paths: tuple[Path, ...]
    readers: tuple[RowReader, ...]
    expected: int | None

    def tables(self) -> list[Table]:
        """Open the files."""
        return [open_table(path) for path in self.paths]


@dataclass(frozen=True)
class Tree:
    """What was found below a folder.

    Attributes:
        root: the folder.
        splits: what is there.
        missing: what should be there and is not, in words.
    """

    root: Path
    splits: tuple[SplitFiles, ...]
    missing: tuple[str, ...]

    def relative(self, path: Path) -> str:
        """Return a file's path from the root, with forward slashes."""
        return Path(os.path.relpath(path, self.root)).as_posix()


def find_sources(storage: Storage) -> list[Source]:
    """List the files of a split.

    Args:
        storage: a path, a list of paths, or a mapping from configuration names to those. Paths are absolute,
            begin with ``~``, or are relative to the working directory; they may hold the wildcards
            ``*``, ``?``, ``[...]`` and ``**``. The files of one wildcard come in alphabetical order.

    Raises:
        DataError: if a path or wildcard matches no file, or a file that has no rows of M3IT in any form, or a file is
            named twice. All such faults are named at once.
    """
    sources, problems = [], []
    by_config = storage if isinstance(storage, Mapping) else {None: storage}
    for config, paths in by_config.items():
        for path in [paths] if isinstance(paths, str) else paths:
            matches = expand_path(path)
            sources += [Source(match, config) for match in matches]
            problems += [fault for match in matches if (fault := _other_table(match))]
            if not matches:
                problems.append(_explain_no_match(path))
    seen = set()
    for source in sources:
        if source.path in seen:
            problems.append(f"{source.path} is named twice; name each file once")
        seen.add(source.path)
    if problems:
        raise DataError("Cannot find the M3IT files:\n  " + "\n  ".join(problems))
    return sources


def expand_path(path: str) -> list[Path]:
    """List the files that a path or wildcard names, absolute and in alphabetical order; empty if there is none."""
    absolute = os.path.abspath(os.path.expanduser(path))
    # First as it is: a file's name may hold a wildcard's character, as `a[1].jsonl` does.
    if _is_table(absolute):
        return [Path(absolute)]
    return [Path(match) for match in sorted(glob.glob(absolute, recursive=True)) if _is_table(match)]


def find_tree(
    root: str | Path,
    names: Sequence[str] | None,
    splits: Sequence[str] = SPLITS,
    *,
    seed: int = 0,
    allow_text_only: bool = False,
) -> Tree:
    """Look for configurations below a folder.

    Args:
        root: the folder.
        names: the configurations, of the catalog or one's own; None: the folder is one itself, see :func:`holds_rows`.
        splits: those that are looked for.
        seed: of the instructions that are drawn.
        allow_text_only: whether rows without an image are examples in all configurations, not only in those where
            the catalog says so.

    Raises:
        DataError: if there is no such folder, or nothing of what was asked for is below it.
    """
    root = Path(root).expanduser().absolute()
    if not root.is_dir():
        raise DataError(
            f"there is no folder {root}. Name the folder that M3IT was downloaded to; `hf download MMInstruction/M3IT "
            f"--repo-type dataset --local-dir {shlex.quote(str(root))}` puts it there"
        )
    found: list[SplitFiles] = []
    missing: list[str] = []
    above = root.parent if names is None else root
    entries = [own_entry(root.name)] if names is None else [BY_NAME.get(name) or own_entry(name) for name in names]
    for entry in entries:
        for split in splits if entry.is_own else entry.splits:
            if split in splits:
                files = _find_split(above, entry, split, missing)
                if files is not None:
                    readers = [
                        replace(reader, seed=seed, text_only=reader.text_only or allow_text_only)
                        for reader in files.readers
                    ]
                    found.append(replace(files, readers=tuple(readers)))
    missing += _find_none_of(above, [entry.name for entry in entries], found)
    if not found:
        if holds_rows(root):
            raise DataError(
                f"{root} holds rows itself and no configurations in folders: leave --preset and --configs out, or name "
                f"the folder above: {root.parent} --configs {root.name}"
            )
        more = f"\n  and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise DataError(
            f"nothing of {', '.join(entry.name for entry in entries)} is below {root}:\n  "
            + "\n  ".join(missing[:_SHOWN])
            + f"{more}\n"
            "Expected data/<category>/<folder>/ as on the hub, or <name>/<split>.jsonl, <name>/<split>/state.json or "
            "<name>/<split>-*.parquet; docs/data.md shows them. `gitllm m3it from-csv` and `from-coco` make such rows "
            "of tables, folders of pictures and COCO's files."
        )
    return Tree(root, tuple(found), tuple(missing))


def holds_rows(folder: str | Path) -> bool:
    """Tell whether a folder has files of splits in itself, as `gitllm m3it from-csv` writes them."""
    return any(_find_uniform(Path(folder).expanduser(), split) for split in SPLITS)


def own_configurations(root: str | Path) -> list[str]:
    """List the folders of rows right below a folder that is not M3IT's tree as downloaded; none of one that is."""
    root = Path(root).expanduser()
    if any((base / entry.folder).is_dir() for base in (root / "data", root) for entry in BY_NAME.values()):
        return []
    return sorted(folder.name for folder in root.glob("*") if folder.is_dir() and holds_rows(folder))


def _find_none_of(root: Path, names: Sequence[str], found: list[SplitFiles]) -> list[str]:
    """Tell of names of one's own that have no split at all; for those of the catalog each split is told."""
    there = {files.config for files in found}
    return [f"{name}: {root / name} has no split" for name in names if name not in BY_NAME and name not in there]


def _find_split(root: Path, entry: Entry, split: str, missing: list[str]) -> SplitFiles | None:
    # Raw files go before: a folder may hold both, where somebody converted what was downloaded.
    paths = _find_raw(root, entry, split)
    adapter = entry.adapter
    if not paths:
        paths, adapter = _find_uniform(root / entry.name, split), "uniform"
    if not paths:
        # Nobody knows whether there should be one where the number of rows is not known.
        if entry.rows(split) is not None:
            missing.append(f"{entry.name}/{split}: {_expected_path(root, entry, split)}")
        return None
    folder = paths[0].parent
    form = ADAPTERS[adapter]
    instructions = () if form.has_instructions else read_instructions(folder)
    if not instructions and not form.has_instructions:
        missing.append(f"{entry.name}/{split}: {folder / INSTRUCTION_FILES[0]}")
    labels = {}
    if form.needs_labels:
        labels = _read_labels(folder / "mapping.txt", f"{entry.name}/{split}", missing)
    readers = [
        RowReader(
            config=entry.name,
            split=split,
            adapter=adapter,
            label=split if len(paths) == 1 else f"{split}/{path.stem}",
            # Groups of a split are numbered by line, and lines of each file begin at 1.
            first_number=number * _NUMBERS_PER_FILE,
            instructions=instructions,
            labels=labels,
            text_only=entry.text_only,
        )
        for number, path in enumerate(paths)
    ]
    return SplitFiles(entry.name, split, tuple(paths), tuple(readers), entry.rows(split))


def _find_raw(root: Path, entry: Entry, split: str) -> list[Path]:
    """Find the file of a split in the hub's tree."""
    if entry.is_own:
        return []
    for base in (root / "data", root):
        for name in entry.file_names(split):
            matches = sorted(path for path in (base / entry.folder).glob(name) if path.is_file())
            # Two downloads of different dates: which of them is meant cannot be guessed.
            if len(matches) > 1:
                raise DataError(
                    f"{entry.name}/{split}: {len(matches)} files match {base / entry.folder / name}: "
                    f"{', '.join(path.name for path in matches)}. Keep one of them."
                )
            if matches:
                return matches
    return []


def _find_uniform(folder: Path, split: str) -> list[Path]:
    """Find the files of a split in the forms that hold uniform rows; the first form that is there counts."""
    for word in _SPLIT_WORDS[split]:
        for pattern in (f"{word}.jsonl", f"{word}.parquet", f"{word}-*.parquet", f"{word}/*.parquet"):
            matches = sorted(folder.glob(pattern))
            if matches:
                return matches
        if (folder / word / "state.json").is_file():
            return [folder / word]
    if split == "train" and (folder / "state.json").is_file():  # a Dataset that is not in a DatasetDict
        return [folder]
    return []


def _expected_path(root: Path, entry: Entry, split: str) -> Path:
    return root / "data" / entry.folder / entry.file_names(split)[0]


def _read_labels(path: Path, what: str, missing: list[str]) -> dict[str | int, str]:
    """Read class names by the number of their line, from 0, and by the key in front (``n01440764``) if there is one.

    A name keeps its synonyms: ``tench, Tinca tinca``.
    """
    if not path.is_file():
        missing.append(f"{what}: {path}")
        return {}
    labels: dict[str | int, str] = {}
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error}); expected a class on each line. Download it again.") from error
    for number, line in enumerate(lines):
        keyed = _LABEL_KEY.match(line)
        name = line[keyed.end() :] if keyed else line
        labels[number] = labels[str(number)] = name
        if keyed:
            labels[keyed[1]] = name
    return labels


def _is_table(path: str) -> bool:
    """Tell whether a path is a file, or a folder that ``Dataset.save_to_disk`` of the ``datasets`` library wrote."""
    return os.path.isfile(path) or os.path.isfile(os.path.join(path, "state.json"))


def _other_table(path: Path) -> str | None:
    """Say of a table that is not in M3IT's form what makes it one."""
    suffix = path.suffix.lower()
    if path.is_dir() or suffix == PARQUET:
        return None
    if suffix in SPREADSHEETS:
        return f"{path} is a spreadsheet: save the sheet as CSV (UTF-8), and make rows of that: `gitllm m3it from-csv`"
    try:
        with open(path, "rb") as file:
            kind = kind_by_bytes(file.read(LONGEST_SIGNATURE))
    except OSError as error:
        return f"{path} cannot be read: {error.strerror or error}"
    if kind:
        return f"{path} is no file of rows but {kind}"
    if suffix in DELIMITERS:
        return f"{path} is no file of rows: `gitllm m3it from-csv {shlex.quote(str(path))} FOLDER` makes some of it"
    return None


def _explain_no_match(path: str) -> str:
    absolute = os.path.abspath(os.path.expanduser(path))
    if os.path.isdir(absolute):
        return f"{absolute} is a folder; name a file, or a wildcard such as {os.path.join(path, '*.jsonl')}"
    kind = "no file matches" if glob.has_magic(path) else "no such file:"
    given = "" if path == absolute else f" (given as {path!r}, working directory {os.getcwd()})"
    return f"{kind} {absolute}{given}"

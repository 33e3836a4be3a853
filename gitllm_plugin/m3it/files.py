"""Which files a split is made of, and under which configuration names."""

import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gitllm_plugin.errors import DataError

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


def find_sources(storage: Storage) -> list[Source]:
    """Lists the files of a split.

    Args:
        storage: a path, a list of paths, or a mapping from configuration names to those. Paths are absolute,
            begin with ``~``, or are relative to the working directory; they may hold the wildcards
            ``*``, ``?``, ``[...]`` and ``**``. The files of one wildcard come in alphabetical order.

    Raises:
        DataError: if a path or wildcard matches no file, or a file is named twice. All such faults are
            named at once.
    """
    sources, problems = [], []
    by_config = storage if isinstance(storage, Mapping) else {None: storage}
    for config, paths in by_config.items():
        for path in [paths] if isinstance(paths, str) else paths:
            matches = expand_path(path)
            sources += [Source(match, config) for match in matches]
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
    """The files that a path or wildcard names, absolute and in alphabetical order; empty if there is none."""
    absolute = os.path.abspath(os.path.expanduser(path))
    if _is_table(absolute):  # also a file whose name holds a wildcard character
        return [Path(absolute)]
    return [Path(match) for match in sorted(glob.glob(absolute, recursive=True)) if _is_table(match)]


def _is_table(path: str) -> bool:
    """Whether a path is a file, or a folder that ``Dataset.save_to_disk`` of the ``datasets`` library wrote."""
    return os.path.isfile(path) or os.path.isfile(os.path.join(path, "state.json"))


def _explain_no_match(path: str) -> str:
    absolute = os.path.abspath(os.path.expanduser(path))
    if os.path.isdir(absolute):
        return f"{absolute} is a folder; name a file, or a wildcard such as {os.path.join(path, '*.jsonl')}"
    kind = "no file matches" if glob.has_magic(path) else "no such file:"
    given = "" if path == absolute else f" (given as {path!r}, working directory {os.getcwd()})"
    return f"{kind} {absolute}{given}"

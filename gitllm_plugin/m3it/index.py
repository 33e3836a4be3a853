"""What was found in M3IT's files, kept on disk: a tree of hundreds of gigabytes is read once, not at every start.

An index belongs to one file as it was: size, time of the last change, and how its rows were read must be the same.
"""

import hashlib
import json
import sys
import zipfile
from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from gitllm_plugin.common.files import atomic_file
from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it.examples import ScannedFile, find_duplicates
from gitllm_plugin.m3it.problems import Problem
from gitllm_plugin.m3it.rows import READING_VERSION, RowReader
from gitllm_plugin.m3it.scan import Look, Scan, cut_file, scan_part
from gitllm_plugin.m3it.tables import get_version, open_table, size_of
from gitllm_plugin.m3it.tree import SplitFiles, Tree

_VERSION = 1  # of what is kept
_PART_BYTES = 32 * 2**20  # between two steps of the progress bar
_DEFAULT_LOOK: Look = "header"
_LOOKS: tuple[Look, ...] = ("base64", "header", "pixel")
_ARRAYS = {"lines": "q", "positions": "q", "texts": "l"}
_TEXTS = ("configs", "ids", "problems", "rows", "images", "image_bytes")


def default_index_folder() -> Path:
    """Where indexes are kept: ``~/.cache/gitllm/m3it``."""
    return Path.home() / ".cache" / "gitllm" / "m3it"


def index_path(folder: Path, path: Path, config: str) -> Path:
    """The index of a file; one is kept for each configuration that it belongs to, the last one."""
    name = hashlib.sha256(f"{config} {path}".encode()).hexdigest()[:32]
    return folder / f"{name}.npz"


def save_index(folder: Path, file: ScannedFile, look: Look) -> None:
    """Keeps what was found in a file."""
    scan = file.scan
    facts = {
        "key": _make_key(file.path, file.reader, file.version),
        "look": look,
        "problems": [[each.file, each.line, each.kind, each.message] for each in scan.problems],
        **{name: getattr(scan, name) for name in ("ids", "rows", "images", "image_bytes")},
        "configs": sorted(set(scan.configs)),
    }
    numbers = {config: number for number, config in enumerate(facts["configs"])}
    arrays: dict[str, Any] = {name: np.frombuffer(getattr(scan, name), code) for name, code in _ARRAYS.items()}
    arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    arrays["keys"] = np.frombuffer(bytes(scan.keys), np.uint8)
    arrays["config_of"] = np.array([numbers[config] for config in scan.configs], np.int32)
    with atomic_file(index_path(folder, file.path, file.reader.config)) as target:
        np.savez(target, **arrays)


def load_index(folder: Path, path: Path, reader: RowReader, look: Look) -> ScannedFile | None:
    """What was found in a file, if that is kept, the file is still the same, and it was looked at as far as that."""
    version = get_version(open_table(path))
    stored = index_path(folder, path, reader.config)
    try:
        arrays = np.load(stored, allow_pickle=False)
    except (OSError, ValueError, zipfile.BadZipFile):  # there is none, or it is damaged
        return None
    with arrays:
        facts = json.loads(arrays["facts"].tobytes())
        if facts["key"] != _make_key(path, reader, version) or _LOOKS.index(facts["look"]) < _LOOKS.index(look):
            return None
        scan = Scan(keys=bytearray(arrays["keys"].tobytes()))
        for name, code in _ARRAYS.items():
            setattr(scan, name, array(code, arrays[name].tobytes()))
        scan.configs = [facts["configs"][number] for number in arrays["config_of"]]
    scan.problems = [Problem(*each) for each in facts["problems"]]
    for name in ("ids", "rows", "images", "image_bytes"):
        setattr(scan, name, facts[name])
    return ScannedFile(path, reader, version, scan)


def open_split(tree: Tree, split: SplitFiles, folder: Path, limit: int | None = None) -> list[ScannedFile]:
    """What was found in the files of a split: as it is kept, or else they are read now.

    Args:
        tree: to which the split belongs.
        split: the files.
        folder: where indexes are kept. Of several processes one reads a file, and the others wait for it.
        limit: read only so many rows of each file, and keep nothing.

    Returns:
        The files, without rows whose id an earlier row of the split has; such rows are among the problems.
    """
    files = []
    for path, reader in zip(split.paths, split.readers, strict=True):
        if limit is not None:
            files.append(_scan_file(tree, path, reader, limit))
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{folder} cannot be made ({error}). Name another build_info.index_folder.") from error
        with FileLock(index_path(folder, path, reader.config).with_suffix(".lock")):
            file = load_index(folder, path, reader, _DEFAULT_LOOK)
            if file is None:
                file = _scan_file(tree, path, reader, limit)
                save_index(folder, file, _DEFAULT_LOOK)
        files.append(file)
    return _drop_duplicates(tree, files)


def _scan_file(tree: Tree, path: Path, reader: RowReader, limit: int | None) -> ScannedFile:
    name, table, scan = tree.relative(path), open_table(path), Scan()
    version = get_version(table)
    hidden = not sys.stderr.isatty()
    with tqdm(total=size_of(table), unit="B", unit_scale=True, desc=f"reading {name}", disable=hidden) as bar:
        for part in cut_file(path, name, reader, _PART_BYTES):
            scan.add(scan_part(part, look=_DEFAULT_LOOK, limit=None if limit is None else limit - scan.rows))
            bar.update(part.bytes)
            if limit is not None and scan.rows >= limit:
                break
    return ScannedFile(path, reader, version, scan)


def _drop_duplicates(tree: Tree, files: list[ScannedFile]) -> list[ScannedFile]:
    names = [tree.relative(file.path) for file in files]
    duplicates = find_duplicates(list(zip(names, (file.scan for file in files), strict=True)))
    if not duplicates:
        return files
    kept = []
    for name, file in zip(names, files, strict=True):
        mine = [problem for problem in duplicates if problem.file == name]
        scan = file.scan.without({problem.line for problem in mine})
        kept.append(replace(file, scan=replace(scan, problems=scan.problems + mine)))
    return kept


def _make_key(path: Path, reader: RowReader, version: list[tuple[int, int]]) -> list:
    """All that what was found depends on."""
    how = [reader.config, reader.label, reader.adapter, reader.text_only, reader.row_config]
    beside = [len(reader.instructions) > 0, len(reader.labels)]
    return [_VERSION, READING_VERSION, str(path), [list(each) for each in version], how, beside]

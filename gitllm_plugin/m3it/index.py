"""What was found in M3IT's files, kept on disk: a tree of hundreds of gigabytes is read once, not at every start.

An index belongs to one file as it was: size, time of the last change, and how its rows were read must be the same.
"""

import hashlib
import json
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from gitllm_plugin.m3it.atomic import atomic_file
from gitllm_plugin.m3it.examples import ScannedFile
from gitllm_plugin.m3it.problems import Problem
from gitllm_plugin.m3it.rows import READING_VERSION, RowReader
from gitllm_plugin.m3it.scan import Look, Scan
from gitllm_plugin.m3it.tables import get_version, open_table

_VERSION = 1  # of what is kept
_LOOKS: tuple[Look, ...] = ("base64", "header", "pixel")
_ARRAYS = {"lines": "q", "positions": "q", "texts": "l"}
_TEXTS = ("configs", "ids", "problems", "rows", "images", "image_bytes")


def default_index_folder() -> Path:
    """Where indexes are kept: ``~/.cache/gitllm/m3it``."""
    return Path.home() / ".cache" / "gitllm" / "m3it"


def index_path(folder: Path, path: Path) -> Path:
    """The index of a file; one is kept per file, the last one."""
    name = hashlib.sha256(str(path).encode()).hexdigest()[:32]
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
    with atomic_file(index_path(folder, file.path)) as target:
        np.savez(target, **arrays)


def load_index(folder: Path, path: Path, reader: RowReader, look: Look) -> ScannedFile | None:
    """What was found in a file, if that is kept, the file is still the same, and it was looked at as far as that."""
    version = get_version(open_table(path))
    stored = index_path(folder, path)
    if not stored.is_file():
        return None
    with np.load(stored, allow_pickle=False) as arrays:
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


def _make_key(path: Path, reader: RowReader, version: list[tuple[int, int]]) -> list:
    """All that what was found depends on."""
    how = [reader.config, reader.label, reader.adapter, reader.text_only, reader.row_config]
    beside = [len(reader.instructions) > 0, len(reader.labels)]
    return [_VERSION, READING_VERSION, str(path), [list(each) for each in version], how, beside]

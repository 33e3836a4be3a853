"""Reading all rows of M3IT's files once: where they are, which images they show, and what is wrong.

What was found may be kept on disk, in an index: a tree of hundreds of gigabytes is read once, not at every start. An
index belongs to one file as it was: size, time of the last change, and how its rows were read must be the same.
"""

import hashlib
import json
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from gitllm_plugin.common.files import atomic_file
from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it.group import hash_images, longest_text
from gitllm_plugin.m3it.images import MAX_PIXELS, check_header, decode_pixels
from gitllm_plugin.m3it.problems import Problem
from gitllm_plugin.m3it.rows import READING_VERSION, RowReader
from gitllm_plugin.m3it.tables import get_version, open_table, size_of
from gitllm_plugin.m3it.tree import SplitFiles, Tree

KEY_BYTES = 16

Look = Literal["base64", "header", "pixel"]
"""How far images are looked at: what finds more takes longer."""

_VERSION = 2  # of what is kept
STEP_BYTES = 32 * 2**20
"""How much is read between two steps of a progress bar."""

_DEFAULT_LOOK: Look = "header"
_LOOKS: tuple[Look, ...] = ("base64", "header", "pixel")
_ARRAYS = {"lines": "q", "positions": "q", "texts": "l", "text_bytes": "l", "image_counts": "l"}


@dataclass(frozen=True)
class Slice:
    """A range of positions of one file.

    Attributes:
        path: the file, or the folder that ``datasets`` saved.
        name: what it is called in messages.
        reader: of its rows.
        start: first position.
        end: the position behind the last one.
        first_line: the number of the first row that begins at ``start`` or behind.
        bytes: about how much of the file it is.
    """

    path: Path
    name: str
    reader: RowReader
    start: int
    end: int
    first_line: int
    bytes: int


@dataclass
class Scan:
    """What was found in a slice, one item per row of which there is something to use.

    Attributes:
        lines: row numbers.
        positions: where rows can be read again.
        texts: how many texts each has.
        text_bytes: the bytes of each one's longest instruction and answer; an instruction that is drawn may be another.
        image_counts: how many images each has.
        keys: a hash of each row's images, 16 bytes; zeros where it has none.
        configs: the configuration of each row.
        ids: of rows in a form that may have ids of its own; those of other rows are unique as made.
        rows: number of rows, also of those that cannot be used.
        images: number of image files.
        image_bytes: their size.
        problems: all that cannot be used.
    """

    # Arrays, since a list of numbers takes five times the memory and trees have millions of rows.
    lines: array = field(default_factory=lambda: array("q"))
    positions: array = field(default_factory=lambda: array("q"))
    texts: array = field(default_factory=lambda: array("l"))
    text_bytes: array = field(default_factory=lambda: array("l"))
    image_counts: array = field(default_factory=lambda: array("l"))
    keys: bytearray = field(default_factory=bytearray)
    configs: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    rows: int = 0
    images: int = 0
    image_bytes: int = 0
    problems: list[Problem] = field(default_factory=list)

    def without(self, lines: set[int]) -> "Scan":
        """Leave some rows out, by their numbers."""
        if not lines:
            return self
        kept = [index for index, line in enumerate(self.lines) if line not in lines]
        return replace(
            self,
            **{name: array(code, (getattr(self, name)[index] for index in kept)) for name, code in _ARRAYS.items()},
            keys=bytearray(b"".join(self.keys[KEY_BYTES * index : KEY_BYTES * (index + 1)] for index in kept)),
            configs=[self.configs[index] for index in kept],
            ids=[self.ids[index] for index in kept if self.ids],
        )

    def add(self, other: "Scan") -> None:
        """Append what was found in the next slice."""
        for name in (*_ARRAYS, "keys", "configs", "ids", "problems"):
            getattr(self, name).extend(getattr(other, name))
        self.rows += other.rows
        self.images += other.images
        self.image_bytes += other.image_bytes


@dataclass(frozen=True)
class ScannedFile:
    """A file whose rows were read once.

    Attributes:
        path: the file, or the folder that ``datasets`` saved.
        reader: of its rows.
        version: size and time of the last change when it was read.
        scan: what was found.
    """

    path: Path
    reader: RowReader
    version: list[tuple[int, int]]
    scan: Scan


def cut_file(path: Path, name: str, reader: RowReader, target_bytes: int) -> Iterator[Slice]:
    """Cut a file into slices of about so many bytes, with the number of the first line of each."""
    table = open_table(path)
    ranges = table.cut(target_bytes)
    first_lines = table.first_lines([start for start, _ in ranges])
    per_position = size_of(table) / max(1, table.end)
    for (start, end), first_line in zip(ranges, first_lines, strict=True):
        yield Slice(path, name, reader, start, end, first_line, round((end - start) * per_position))


def scan_slice(piece: Slice, *, look: Look = "header", limit: int | None = None, max_pixels: int = MAX_PIXELS) -> Scan:
    """Read the rows of a slice.

    Args:
        piece: what to read.
        look: how far images are looked at: their ``base64`` alone, their ``header``, or every ``pixel``.
        limit: read only so many rows.
        max_pixels: images with more pixels cannot be used (from ``header`` on).
    """
    scan = Scan()
    check = None if look == "base64" else partial(check_image, decode=look == "pixel", max_pixels=max_pixels)
    for row in open_table(piece.path).rows(piece.start, piece.end, piece.first_line):
        if limit is not None and scan.rows >= limit:
            break
        scan.rows += 1
        group, problems = piece.reader.read(row.content, row.line, check)
        scan.problems += [Problem(piece.name, row.line, error.kind, error.message) for error in problems]
        if group is None:
            continue
        scan.lines.append(row.line)
        scan.positions.append(row.position)
        scan.texts.append(len(group.texts))
        scan.text_bytes.append(longest_text(group.texts))
        scan.image_counts.append(len(group.images))
        # Hashed now, when the bytes are at hand: grouping texts by image reads no file again.
        scan.keys += hash_images(group.images)
        scan.configs.append(group.config)
        if piece.reader.form.has_ids:
            scan.ids.append(group.texts[0].id)
        scan.images += len(group.images)
        scan.image_bytes += sum(map(len, group.images))
    return scan


def check_image(data: bytes, *, decode: bool, max_pixels: int = MAX_PIXELS) -> bytes:
    """Return the image, if it can be used as far as was looked.

    Raises:
        RowError: if it cannot.
    """
    if decode:
        decode_pixels(data, max_pixels=max_pixels)
    else:
        check_header(data, max_pixels=max_pixels)
    return data


def find_duplicates(scans: Sequence[tuple[str, Scan]]) -> list[Problem]:
    """Find rows whose id another row before them has.

    Args:
        scans: the name of each file of a split, and what was found in it; only rows that may have ids of their own
            are looked at.
    """
    first: dict[str, str] = {}
    problems = []
    for name, scan in scans:
        # Of a file whose rows have no ids of their own there are none: these are unique as they are made.
        for line, row_id in zip(scan.lines, scan.ids, strict=bool(scan.ids)):
            place = f"{name}:{line}"
            other = first.setdefault(row_id, place)
            if other != place:
                message = f"id {row_id!r} is also that of {other}; ids must be unique in a split"
                problems.append(Problem(name, line, "duplicate_id", message))
    return problems


def default_index_folder() -> Path:
    """Return where indexes are kept: ``~/.cache/gitllm/m3it``."""
    return Path.home() / ".cache" / "gitllm" / "m3it"


def index_path(folder: Path, path: Path, config: str) -> Path:
    """Return the index of a file; of each configuration that it belongs to, the last one is kept."""
    name = hashlib.sha256(f"{config} {path}".encode()).hexdigest()[:32]
    return folder / f"{name}.npz"


def save_index(folder: Path, file: ScannedFile, look: Look) -> None:
    """Keep what was found in a file."""
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
    """Load what was found in a file, if that is kept, the file is the same, and images were looked at as far."""
    version = get_version(open_table(path))
    stored = index_path(folder, path, reader.config)
    # A zip file of arrays can be damaged in many ways, and all that any of them costs is that the rows are read again.
    try:
        scan, facts = _read_index(stored)
        if facts["key"] != _make_key(path, reader, version) or _LOOKS.index(facts["look"]) < _LOOKS.index(look):
            return None
    except Exception:  # noqa: BLE001
        return None
    return ScannedFile(path, reader, version, scan)


def _read_index(stored: Path) -> tuple[Scan, dict[str, Any]]:
    # Without pickled objects, which could run anything: others may have put the file there. What is no array, numpy
    # gives as bytes, and these have neither tobytes nor tolist.
    with np.load(stored, allow_pickle=False) as arrays:
        facts = json.loads(arrays["facts"].tobytes())
        scan = Scan(keys=bytearray(arrays["keys"].tobytes()))
        for name, code in _ARRAYS.items():
            setattr(scan, name, array(code, arrays[name].tobytes()))
        scan.configs = [facts["configs"][number] for number in arrays["config_of"].tolist()]
    scan.problems = [Problem(*each) for each in facts["problems"]]
    for name in ("ids", "rows", "images", "image_bytes"):
        setattr(scan, name, facts[name])
    return scan, facts


def open_split(tree: Tree, split: SplitFiles, folder: Path, limit: int | None = None) -> list[ScannedFile]:
    """Load what was found in the files of a split, or else read them now.

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
        # All ranks of a run come here at once; hundreds of gigabytes are read by one of them.
        with FileLock(index_path(folder, path, reader.config).with_suffix(".lock")):
            file = load_index(folder, path, reader, _DEFAULT_LOOK)
            if file is None:
                file = _scan_file(tree, path, reader, limit)
                save_index(folder, file, _DEFAULT_LOOK)
        files.append(file)
    return _drop_duplicates(tree, files)


def _scan_file(tree: Tree, path: Path, reader: RowReader, limit: int | None) -> ScannedFile:
    name, table, scan = tree.relative(path), open_table(path), Scan()
    version = get_version(table)  # before reading: a file that changes meanwhile is found out at the first row
    hidden = not sys.stderr.isatty()
    with tqdm(total=size_of(table), unit="B", unit_scale=True, desc=f"reading {name}", disable=hidden) as bar:
        for piece in cut_file(path, name, reader, STEP_BYTES):
            scan.add(scan_slice(piece, look=_DEFAULT_LOOK, limit=None if limit is None else limit - scan.rows))
            bar.update(piece.bytes)
            if limit is not None and scan.rows >= limit:
                break
    return ScannedFile(path, reader, version, scan)


def _drop_duplicates(tree: Tree, files: list[ScannedFile]) -> list[ScannedFile]:
    names = [tree.relative(file.path) for file in files]
    # Not kept in the index: whether an id repeats depends on the other files of the split.
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
    """List all that what was found depends on."""
    how = [reader.config, reader.label, reader.adapter, reader.text_only, reader.row_config]
    # Which instructions there are, and the seed, change what is drawn but not what is found.
    beside = [len(reader.instructions) > 0, len(reader.labels)]
    return [_VERSION, READING_VERSION, str(path), [list(each) for each in version], how, beside]

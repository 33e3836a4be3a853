"""Data sets as the hub has them: parquet files, what the library ``datasets`` saved to a disk, and names of the hub."""

import importlib.util
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from gitllm_plugin.errors import ConfigError, DataError, GitLLMError
from gitllm_plugin.m3it.from_table.columns import ColumnFinder
from gitllm_plugin.m3it.from_table.json_rows import read_entry
from gitllm_plugin.m3it.from_table.records import Read
from gitllm_plugin.m3it.from_table.settings import SPLIT_IN_NAME, SPLIT_OF, FromTable
from gitllm_plugin.m3it.problems import RowError
from gitllm_plugin.m3it.table_kinds import PARQUET
from gitllm_plugin.m3it.tables import ArrowFolder, ParquetFile

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class _Part:
    """Rows of one split.

    Attributes:
        split: its name in the data set; empty where it has none.
        place: of its first rows, for messages.
        rows: one by one.
        classes: by column, names of the classes that it has the numbers of.
    """

    split: str
    place: str
    rows: Iterator[Mapping[str, Any]]
    classes: Mapping[str, list[str]] = field(default_factory=dict)


def read_dataset(name: str, settings: FromTable, tell: Callable[[str], None]) -> Iterator[Read]:
    """Read the rows of a data set, questions with answers or conversations; images are bytes, mappings or names.

    Args:
        name: a parquet file, a folder of such files, a folder that ``save_to_disk`` wrote, or a name on the hub, which
            the library ``datasets`` streams.
        settings: how.
        tell: is told what is not read.

    Raises:
        ConfigError: the library is needed and not installed.
        DataError: there is no such data set or split, or nothing of it can be read.
    """
    parts = list(_parts(name, settings))
    names = list(dict.fromkeys(part.split for part in parts))
    if settings.split is not None:
        parts = [part for part in parts if part.split == settings.split]
        if not parts:
            raise DataError(f"{name} has no split {settings.split!r}; it has {_shown(names)}")
    elif len(names) > 1 and (unknown := [split for split in names if split not in SPLIT_OF]):
        raise DataError(f"{name} has the splits {_shown(names)}; {_shown(unknown)} is none of ours: choose one (split)")
    dealt = settings.split is not None or len(names) == 1
    finder = ColumnFinder(settings.columns)
    read = partial(read_entry, finder=finder, keeps_marks=settings.keeps_marks)
    number = 0
    for part in parts:
        for place, row in enumerate(part.rows, start=1):
            number += 1
            yield _record(row, number, f"{part.place}:{place}", read, part, None if dealt else SPLIT_OF[part.split])
    finder.check_given(name)
    if unread := finder.unread():
        tell(f"{name}: columns that are not read: {', '.join(unread)}; read are {', '.join(finder.wanted)}")


def _record(
    row: Mapping[str, Any], number: int, place: str, read: Callable[..., Read], part: _Part, split: str | None
) -> Read:
    named = {key: _named(value, part.classes.get(key)) for key, value in row.items() if not (split and key == "split")}
    found = read(named, number, place)
    if split is None or isinstance(found, RowError):
        return found
    return replace(found, cells={**found.cells, "split": split})


def _named(value: Any, classes: list[str] | None) -> Any:
    """Give the name of a class in the place of its number."""
    known = classes is not None and isinstance(value, int) and 0 <= value < len(classes)
    return classes[value] if known else value  # type: ignore[index]


def _parts(name: str, settings: FromTable) -> Iterator[_Part]:
    path = Path(name).expanduser()
    if path.is_dir() and settings.subset is not None:
        path = path / settings.subset
    if path.is_file():
        if path.suffix != PARQUET:
            raise DataError(f"{name} is no parquet file; tables of other kinds are for `gitllm m3it from-csv`")
        yield _of_parquet(path, path.parent)
    elif (path / "state.json").is_file():
        yield _of_saved(path, "")
    elif (path / "dataset_dict.json").is_file():
        for split in sorted(folder for folder in path.iterdir() if (folder / "state.json").is_file()):
            yield _of_saved(split, split.name)
    elif path.is_dir():
        files = sorted(path.rglob(f"*{PARQUET}"))
        if not files:
            raise DataError(
                f"{path} is a folder without parquet files, and none that the library datasets saved; a folder of "
                "pictures, and tables of other kinds, are for `gitllm m3it from-csv`"
            )
        for file in files:
            yield _of_parquet(file, path)
    elif _HUB_NAME.fullmatch(name):
        yield from _of_hub(name, settings.subset)
    else:
        raise DataError(f"there is no file or folder {path}, and a data set of the hub is named user/name")


def _of_parquet(path: Path, root: Path) -> _Part:
    file = ParquetFile(path)
    # The file's own name says it, or that of a folder on the way to it.
    found = [SPLIT_IN_NAME.search(part.lower()) for part in reversed(path.relative_to(root).parts)]
    split = next((match[1] for match in found if match), "")
    rows = (row.content for row in file.rows(0, file.end, 1) if isinstance(row.content, Mapping))
    return _Part(split, str(path), rows, _classes_of(file.schema_metadata))


def _of_saved(folder: Path, split: str) -> _Part:
    table = ArrowFolder(folder)
    rows = (row.content for row in table.rows(0, table.end, 1) if isinstance(row.content, Mapping))
    return _Part(split, str(folder), rows, _classes_of(table.schema_metadata))


def _classes_of(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """Read the names of classes that the library ``datasets`` writes beside a table."""
    try:
        features = orjson.loads(metadata[b"huggingface"])["info"]["features"]
        return {key: value["names"] for key, value in features.items() if value.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, AttributeError, orjson.JSONDecodeError):
        return {}


def _of_hub(name: str, subset: str | None) -> Iterator[_Part]:
    if importlib.util.find_spec("datasets") is None:
        raise ConfigError(
            f"{name} is no file or folder here, and to read it from the hub the library datasets is needed: "
            'pip install "gitllm-plugin[datasets]"'
        )
    import datasets

    with _told(name):
        splits = datasets.load_dataset(name, subset, streaming=True)
    for split, rows in splits.items():
        features = rows.features or {}
        classes = {key: each.names for key, each in features.items() if isinstance(each, datasets.ClassLabel)}
        # Pictures stay files, as in our own tables.
        yield _Part(str(split), f"{name} {split}", _streamed(name, rows.decode(False)), classes)


def _streamed(name: str, rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    with _told(name):
        yield from rows


@contextmanager
def _told(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, GitLLMError):
            raise
        raise DataError(f"the data set {name} cannot be read: {type(error).__name__}: {error}") from error


def _shown(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"

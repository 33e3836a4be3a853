"""How a table is read: what a person may say about it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from gitllm_plugin.errors import ConfigError

COLUMNS = ("image", "question", "answer", "rejected", "instruction", "id", "split")
"""What a table may have. `image` and `answer` are needed; the rest may be missing or empty."""

ALSO = {"image": ("file_name",), "answer": ("chosen", "caption")}
"""What a column may be called besides: of two answers the better one; as LAVIS's lists of captions have it."""

NEEDED = ("image", "answer")
LISTS = ("image", "answer")
"""Columns that may hold several values; the others hold one."""

SPLITS = ("train", "val", "test")

SPLIT_OF = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "validation", "valid", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""The splits of rows, by the names that data sets and folders have for them, in lower case."""

SPLIT_IN_NAME = re.compile(rf"(?:^|[^a-z])({'|'.join(SPLIT_OF)})(?:[^a-z]|$)")
"""Finds one of these names in a part of a path in lower case."""


def split_of_name(path: PurePath) -> str:
    """Find the split that a file's name says, else the innermost of its folders that says one; empty if none does."""
    found = (SPLIT_IN_NAME.search(part.lower()) for part in reversed(path.parts))
    return next((SPLIT_OF[match[1]] for match in found if match), "")


@dataclass(frozen=True)
class FromTable:
    """How a table is read.

    Attributes:
        images: the folder that picture files are relative to; None: the table's own.
        columns: the table's own names of :data:`COLUMNS`, where they are others.
        val: the share of pictures that become the validation split, where the table has no column `split`.
        test: the same for the test split.
        short_side: make pictures smaller whose shorter side is longer, in pixels; None: keep the files as they are.
        encoding: of the text, as Python names it; None: UTF-8, or what a byte order mark says.
        text_only: whether conversations without an image are rows.
        keeps_marks: whether ``<image>`` stays where it stands in a conversation, for models of ``image_places: text``.
        split: of a data set of the hub, the one that is read; None: all, each to the split of its name.
        subset: of a data set of the hub, which of its configurations.

    Raises:
        ConfigError: one of them cannot be.
    """

    images: Path | None = None
    columns: Mapping[str, str] | None = None
    val: float = 0.0
    test: float = 0.0
    short_side: int | None = None
    encoding: str | None = None
    text_only: bool = False
    keeps_marks: bool = False
    split: str | None = None
    subset: str | None = None

    def __post_init__(self) -> None:
        unknown = sorted(set(self.columns or {}) - set(COLUMNS))
        if unknown:
            raise ConfigError(f"columns are given for {', '.join(unknown)}; a table has {', '.join(COLUMNS)}")
        nameless = [column for column, name in (self.columns or {}).items() if not name.strip()]
        if nameless:
            raise ConfigError(f"columns: no name is given for {', '.join(nameless)}; write {nameless[0]}=NAME")
        if not (0 <= self.val < 1 and 0 <= self.test < 1 and self.val + self.test < 1):
            raise ConfigError(f"shares are val {self.val} and test {self.test}; each is at least 0, their sum below 1")
        if self.short_side is not None and self.short_side < 1:
            raise ConfigError(f"pictures cannot be made {self.short_side} pixels large; give 1 or more, such as 224")
        if self.encoding is not None:
            try:
                "a".encode(self.encoding)
            except (LookupError, ValueError) as error:
                raise ConfigError(
                    f"there is no encoding {self.encoding!r}; such are utf-8, utf-16, cp1252 (Windows), shift_jis"
                ) from error


def parse_columns(pairs: Sequence[str]) -> dict[str, str]:
    """Read ``COLUMN=NAME`` pairs.

    Raises:
        ConfigError: one is no pair, or a column is given twice.
    """
    columns: dict[str, str] = {}
    for pair in pairs:
        column, equals, name = pair.partition("=")
        if not equals:
            raise ConfigError(f"columns: {pair!r} is not COLUMN=NAME, as in answer=caption")
        if column in columns:
            raise ConfigError(f"columns: {column} is given twice, as {columns[column]!r} and {name!r}")
        columns[column] = name
    return columns

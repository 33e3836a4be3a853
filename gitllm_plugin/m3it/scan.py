"""Reading all rows of M3IT's files once: where they are, which images they show, and what is wrong."""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from gitllm_plugin.m3it.example import hash_images
from gitllm_plugin.m3it.images import MAX_PIXELS, check_header, decode_pixels
from gitllm_plugin.m3it.problems import Problem
from gitllm_plugin.m3it.rows import RowReader
from gitllm_plugin.m3it.tables import open_table, size_of

KEY_BYTES = 16

Look = Literal["base64", "header", "pixel"]


@dataclass(frozen=True)
class Part:
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
    """What was found in a part, one item per row of which there is something to use.

    Attributes:
        lines: row numbers.
        positions: where rows can be read again.
        texts: how many texts each has.
        keys: a hash of each row's images, 16 bytes; zeros where it has none.
        configs: the configuration of each row.
        ids: of rows in the uniform schema, which may have ids of their own; those of other rows are unique as made.
        rows: number of rows, also of those that cannot be used.
        images: number of image files.
        image_bytes: their size.
        problems: all that cannot be used.
    """

    lines: array = field(default_factory=lambda: array("q"))
    positions: array = field(default_factory=lambda: array("q"))
    texts: array = field(default_factory=lambda: array("l"))
    keys: bytearray = field(default_factory=bytearray)
    configs: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    rows: int = 0
    images: int = 0
    image_bytes: int = 0
    problems: list[Problem] = field(default_factory=list)

    def without(self, lines: set[int]) -> "Scan":
        """What was found but for some rows, by their numbers."""
        if not lines:
            return self
        kept = [index for index, line in enumerate(self.lines) if line not in lines]
        return replace(
            self,
            lines=array("q", (self.lines[index] for index in kept)),
            positions=array("q", (self.positions[index] for index in kept)),
            texts=array("l", (self.texts[index] for index in kept)),
            keys=bytearray(b"".join(self.keys[KEY_BYTES * index : KEY_BYTES * (index + 1)] for index in kept)),
            configs=[self.configs[index] for index in kept],
            ids=[self.ids[index] for index in kept if self.ids],
        )

    def add(self, other: "Scan") -> None:
        """Appends what was found in the next part."""
        for name in ("lines", "positions", "texts", "keys", "configs", "ids", "problems"):
            getattr(self, name).extend(getattr(other, name))
        self.rows += other.rows
        self.images += other.images
        self.image_bytes += other.image_bytes


def cut_file(path: Path, name: str, reader: RowReader, target_bytes: int) -> Iterator[Part]:
    """Cuts a file into parts of about so many bytes, with the number of the first line of each."""
    table = open_table(path)
    ranges = table.cut(target_bytes)
    first_lines = table.first_lines([start for start, _ in ranges])
    per_position = size_of(table) / max(1, table.end)
    for (start, end), first_line in zip(ranges, first_lines, strict=True):
        yield Part(path, name, reader, start, end, first_line, round((end - start) * per_position))


def scan_part(part: Part, *, look: Look = "header", limit: int | None = None, max_pixels: int = MAX_PIXELS) -> Scan:
    """Reads the rows of a part.

    Args:
        part: what to read.
        look: how far images are looked at: their ``base64`` alone, their ``header``, or every ``pixel``.
        limit: read only so many rows.
        max_pixels: images with more pixels cannot be used (from ``header`` on).
    """
    scan = Scan()
    check = None if look == "base64" else partial(check_image, decode=look == "pixel", max_pixels=max_pixels)
    for row in open_table(part.path).rows(part.start, part.end, part.first_line):
        if limit is not None and scan.rows >= limit:
            break
        scan.rows += 1
        group, problems = part.reader.read(row.content, row.line, check)
        scan.problems += [Problem(part.name, row.line, error.kind, error.message) for error in problems]
        if group is None:
            continue
        scan.lines.append(row.line)
        scan.positions.append(row.position)
        scan.texts.append(len(group.texts))
        scan.keys += hash_images(group.images)
        scan.configs.append(group.config)
        if part.reader.adapter == "uniform":
            scan.ids.append(group.texts[0].id)
        scan.images += len(group.images)
        scan.image_bytes += sum(map(len, group.images))
    return scan


def check_image(data: bytes, *, decode: bool, max_pixels: int = MAX_PIXELS) -> bytes:
    """The image, if it can be used as far as was looked.

    Raises:
        RowError: if it cannot.
    """
    if decode:
        decode_pixels(data, max_pixels=max_pixels)
    else:
        check_header(data, max_pixels=max_pixels)
    return data

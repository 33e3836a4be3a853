"""Tables: aligned columns where text is read as it stands, Markdown in files, drawn by rich on a terminal."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import textwrap
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

_LONG_WORD, _NAME, _NARROW = 14, 40, 10
"""Characters: longer words may be folded, and longer names, the first cells; no column of text is made narrower."""


@dataclass(frozen=True)
class Table:
    """Cells in rows.

    Attributes:
        header: a name for each column.
        rows: as many cells each.
        numbers: columns that are set to the right.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Collection[int] = ()

    def __str__(self) -> str:
        rules = ["-" * width for width in self.widths]
        return "\n".join("  ".join(cells).rstrip() for cells in self._padded([self.header, rules, *self.rows]))

    def markdown(self) -> str:
        """Give a table of Markdown that is also readable as it stands."""
        header, *rows = ("| " + " | ".join(cells) + " |" for cells in self._padded([self.header, *self.rows]))
        rules = (
            "-" * (width + 1) + ":" if column in self.numbers else "-" * (width + 2)
            for column, width in enumerate(self.widths)
        )
        return "\n".join([header, "|" + "|".join(rules) + "|", *rows])

    @property
    def widths(self) -> list[int]:
        """Characters of each column's longest cell."""
        return [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]

    @property
    def width(self) -> int:
        """Characters of a line."""
        return sum(self.widths) + 2 * (len(self.header) - 1)

    def _padded(self, lines: Iterable[Sequence[str]]) -> Iterable[list[str]]:
        widths = self.widths
        for line in lines:
            yield [
                cell.rjust(width) if column in self.numbers else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ]


Block = str | Table


def as_text(blocks: Iterable[Block], width: int | None = None) -> str:
    """Paragraphs and tables with an empty line between them.

    Args:
        blocks: of them.
        width: characters of a line; tables that are wider are written as records. None: lines are as long as they are.
    """
    return "\n\n".join(
        "\n".join(_record_lines(block, width))
        if isinstance(block, Table) and width is not None and block.width > width
        else str(block)
        for block in blocks
    )


def as_json(blocks: Iterable[Block]) -> str:
    """Give the same for programs: ``{"texts": [paragraphs], "tables": [{"header": [names], "rows": [[cells]]}]}``."""
    blocks = list(blocks)
    tables = [block for block in blocks if isinstance(block, Table)]
    content = {
        "texts": [block for block in blocks if isinstance(block, str) and block],
        "tables": [{"header": list(table.header), "rows": [list(row) for row in table.rows]} for table in tables],
    }
    return json.dumps(content, ensure_ascii=False, indent=2)


def terminal_width() -> int | None:
    """Characters of a line of the terminal that is written to; None where the output is piped."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def show(blocks: Iterable[Block], to_json: bool = False) -> None:
    """Print paragraphs and tables: drawn on a terminal, plain lines where the output is piped; or JSON."""
    blocks, width = list(blocks), terminal_width()
    if to_json:
        print(as_json(blocks))
        return
    if width is None or importlib.util.find_spec("rich") is None:  # doctor runs where packages are missing
        print(as_text(blocks, width))
        return
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    for index, block in enumerate(blocks):
        if index and not isinstance(blocks[index - 1], Table):
            console.print()
        if isinstance(block, str):
            console.print(block, soft_wrap=True)
        elif (widths := _column_widths(block, width - 3 * len(block.header) - 1)) is not None:
            console.print(_drawn(block, widths))
        else:
            for line in [*_record_lines(block, width), ""]:
                console.print(line, soft_wrap=True, style="" if line.startswith(" ") else "bold cyan")


def _column_widths(table: Table, width: int) -> list[int] | None:
    """Share a line among a table's columns: each has what it needs, and the widest fold; None where that is too much.

    Args:
        table: of which numbers are not folded, and words where they are long.
        width: characters of a line, without what stands between columns.
    """
    wanted, least = table.widths, []
    for column, most in enumerate(wanted):
        words = [word for row in table.rows for word in row[column].split()]
        longest = min(max(map(len, words), default=0), _LONG_WORD)
        folded = max(len(table.header[column]), longest, min(most, _NARROW))
        least.append(most if column in table.numbers else folded if column else min(most, _NAME))
    spare = width - sum(least)
    if spare < 0:
        return None
    # What is left goes a character at a time to the column that lacks most.
    while spare and (lacking := max(most - has for most, has in zip(wanted, least, strict=True))) > 0:
        least[[most - has for most, has in zip(wanted, least, strict=True)].index(lacking)] += 1
        spare -= 1
    return least


def _record_lines(table: Table, width: int) -> list[str]:
    """Write a row as lines of their own: its first cell, and below it each other cell with its column's name."""
    indent = min(max(map(len, table.header)) + 4, width // 2)
    lines: list[str] = []
    for row in table.rows:
        lines += [*([""] if lines else []), *textwrap.wrap(row[0], width, subsequent_indent="  ")]
        for name, cell in zip(table.header[1:], row[1:], strict=True):
            begin = f"  {name}".ljust(indent - 1)[: indent - 1] + " "
            if cell:
                lines += textwrap.wrap(cell, width, initial_indent=begin, subsequent_indent=" " * indent)
    return lines


def _drawn(table: Table, widths: Sequence[int]):
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(box=box.SIMPLE_HEAD, header_style="bold cyan", row_styles=["", "dim"])
    for column, (name, width) in enumerate(zip(table.header, widths, strict=True)):
        number = column in table.numbers
        drawn.add_column(Text(name), width=width, justify="right" if number else "left", overflow="fold")
    for row in table.rows:
        drawn.add_row(*map(Text, row))
    return drawn

"""Tables: aligned columns where text is read as it stands, Markdown in files, drawn by rich on a terminal."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass


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
        rules = ["-" * width for width in self._widths()]
        return "\n".join("  ".join(cells).rstrip() for cells in self._padded([self.header, rules, *self.rows]))

    def markdown(self) -> str:
        """Give a table of Markdown that is also readable as it stands."""
        header, *rows = ("| " + " | ".join(cells) + " |" for cells in self._padded([self.header, *self.rows]))
        rules = (
            "-" * (width + 1) + ":" if column in self.numbers else "-" * (width + 2)
            for column, width in enumerate(self._widths())
        )
        return "\n".join([header, "|" + "|".join(rules) + "|", *rows])

    def _widths(self) -> list[int]:
        return [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]

    def _padded(self, lines: Iterable[Sequence[str]]) -> Iterable[list[str]]:
        widths = self._widths()
        for line in lines:
            yield [
                cell.rjust(width) if column in self.numbers else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ]


Block = str | Table


def as_text(blocks: Iterable[Block]) -> str:
    """Paragraphs and tables with an empty line between them."""
    return "\n\n".join(map(str, blocks))


def show(blocks: Iterable[Block]) -> None:
    """Print paragraphs and tables: drawn on a terminal, plain lines where the output is piped."""
    blocks = list(blocks)
    if not sys.stdout.isatty() or importlib.util.find_spec("rich") is None:  # doctor runs where packages are missing
        print(as_text(blocks))
        return
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    for index, block in enumerate(blocks):
        if index and not isinstance(blocks[index - 1], Table):
            console.print()
        console.print(_drawn(block) if isinstance(block, Table) else block, soft_wrap=isinstance(block, str))


def _drawn(table: Table):
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(box=box.SIMPLE_HEAD, header_style="bold cyan", row_styles=["", "dim"])
    for column, name in enumerate(table.header):
        number = column in table.numbers
        drawn.add_column(
            Text(name), justify="right" if number else "left", overflow="fold", no_wrap=number or not column
        )
    for row in table.rows:
        drawn.add_row(*map(Text, row))
    return drawn

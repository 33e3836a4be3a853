"""Tables: plain where output is piped, Markdown in files, drawn on a terminal."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gitllm_plugin.tables import Table, show

ROOT = Path(__file__).parents[1]
TABLE = Table(("name", "rows"), [("coco", "566,747"), ("[b]vqa[/b]", "9")], numbers=(1,))


def test_plain_lines():
    assert str(TABLE).splitlines() == [
        "name           rows",
        "----------  -------",
        "coco        566,747",
        "[b]vqa[/b]        9",
    ]


def test_markdown_is_aligned_too():
    assert TABLE.markdown().splitlines() == [
        "| name       |    rows |",
        "|------------|--------:|",
        "| coco       | 566,747 |",
        "| [b]vqa[/b] |       9 |",
    ]


def test_a_row_with_a_cell_too_few_is_an_error():
    with pytest.raises(ValueError):
        str(Table(("a", "b"), [("1",)]))


def test_piped_output_is_plain(capsys):
    show(["first", TABLE, "last"])
    assert capsys.readouterr().out == f"first\n\n{TABLE}\n\nlast\n"


@pytest.mark.parametrize("columns", [170, 200])
def test_on_a_terminal_tables_are_drawn_and_no_cell_is_lost(columns):
    """In a real pseudo-terminal: a narrow one folds cells."""
    shown = _in_a_terminal([sys.executable, "-m", "gitllm_plugin", "m3it", "list", "--preset", "article_exp3"], columns)
    assert "\x1b[" in shown and "─" in shown
    assert "----" not in shown
    assert "566,747" in shown and "image-paragraph-captioning" in shown
    assert all(len(line) <= columns for line in _without_colours(shown).splitlines() if "article_exp3" not in line)


def _in_a_terminal(command: list[str], columns: int) -> str:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(command, stdout=theirs, env=environment)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 65536):
            shown += piece
    except OSError:  # Linux: the other end is closed
        pass
    finally:
        os.close(ours)
    assert process.wait(60) == 0
    return shown.decode()


def _without_colours(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)

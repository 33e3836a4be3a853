"""Every command that prints a table: on narrow terminals its words stay whole, and ``--json`` has the same rows."""

import ast
import inspect
import json
import re
import sys
from pathlib import Path

import pytest

import gitllm_plugin.tables
from gitllm_plugin.cli.command import Command
from gitllm_plugin.cli.main import COMMANDS, main
from gitllm_plugin.tables import Table, as_json, as_text, show
from tests.faults.commands import Inputs, _shard
from tests.tiny_folder import write_tiny_folder

SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return Inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_folder(tmp_path_factory.mktemp("model") / "tiny")


def _experiment(inputs, model, out):
    plan = out / "plan.yaml"
    plan.write_text(f"title: one\noutput_dir: {out / 'runs'}\nruns: [{{name: a, cfg_path: {inputs.config}}}]\n")
    return ["experiment", str(plan)]


def _merge(inputs, model, out):
    for part in ("1/2", "2/2"):
        assert main([*_shard(inputs, out / "parts"), "--part", part]) == 0
    return ["m3it", "merge", str(out / "parts")]


PRINT_TABLES = {
    "m3it list": lambda inputs, model, out: ["m3it", "list", "--preset", "article_exp3"],
    "m3it check": lambda inputs, model, out: [
        *("m3it", "check", str(inputs.tree), "--configs", "birds", "fish", "--splits", "train", "val"),
        *("--workers", "1"),
    ],
    "m3it shard": lambda inputs, model, out: _shard(inputs, out / "shards"),
    "m3it merge": _merge,
    "keys": lambda inputs, model, out: ["keys", "lora"],
    "doctor": lambda inputs, model, out: ["doctor"],
    "parameters": lambda inputs, model, out: ["parameters", "--cfg-path", str(inputs.config)],
    "words": lambda inputs, model, out: [
        *("words", "--images", str(inputs.config.with_name("val.jsonl")), "--model", str(model)),
        *("--limit", "3", "--out", str(out)),
    ],
    "conform": lambda inputs, model, out: ["conform", "torch", str(model)],
    "experiment": _experiment,
}
ENDS = {"m3it check": 1}


def leaves(commands=COMMANDS, before=()):
    for command in commands:
        if command.actions:
            yield from leaves(command.actions, (*before, command.name))
        else:
            yield " ".join((*before, command.name)), command


def has_json(command: Command) -> bool:
    return any("--json" in each.names for each in command.arguments)


def test_every_command_that_shows_tables_is_tried_and_has_json():
    showing = set()
    for name, command in leaves():
        calls = [n.func for n in ast.walk(ast.parse(inspect.getsource(command.call))) if isinstance(n, ast.Call)]
        if any(isinstance(call, ast.Name) and call.id == "show" for call in calls):
            showing.add(name)
    assert showing == {*PRINT_TABLES}
    assert [name for name, command in leaves() if name in showing and not has_json(command)] == []


class Terminal:
    """Standard output that says that it is a terminal."""

    def __init__(self):
        self.written = []

    encoding = "utf-8"

    def isatty(self):
        return True

    def write(self, text):
        self.written.append(text)

    def flush(self):
        pass


def shown_at(width, blocks, monkeypatch):
    terminal = Terminal()
    with monkeypatch.context() as patch:
        patch.setenv("COLUMNS", str(width))
        patch.setenv("TERM", "xterm-256color")  # one that is called dumb is 80 characters wide to rich
        patch.setattr(sys, "stdout", terminal)
        show(blocks)
    return re.sub(r"\x1b\[[0-9;]*m", "", "".join(terminal.written)).split("\n")


def check_fits(blocks, width, monkeypatch):
    for table in (block for block in blocks if isinstance(block, Table)):
        lines = shown_at(width, [table], monkeypatch)
        assert max(map(len, lines)) <= width
        # In a record a value has half a line at least; a column is as wide as its words, up to a length.
        longest = min(14, width // 2 - 2)
        shown = {word for line in lines for word in line.split()}
        wanted = {word for row in table.rows for cell in row[1:] for word in cell.split() if len(word) <= longest}
        assert wanted <= shown


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=SLOW) if each in ("conform", "experiment") else each for each in PRINT_TABLES]
)
def test_its_words_stay_whole_and_json_has_its_rows(name, inputs, model, tmp_path, monkeypatch, capfd):
    seen = []
    monkeypatch.setattr(
        gitllm_plugin.tables, "show", lambda blocks, *json: seen.append(list(blocks)) or show(seen[-1], *json)
    )
    command = PRINT_TABLES[name](inputs, model, tmp_path)
    seen.clear()
    capfd.readouterr()
    assert main([*command, "--json"]) == ENDS.get(name, 0), capfd.readouterr().err
    printed = json.loads(capfd.readouterr().out)
    if name == "conform":  # which has had its own form
        assert printed["conforms"] is True
        return
    (blocks,) = seen
    tables = [block for block in blocks if isinstance(block, Table)]
    assert tables or name == "doctor"
    assert printed["tables"] == [{"header": list(t.header), "rows": [list(row) for row in t.rows]} for t in tables]
    assert printed["texts"] == [block for block in blocks if isinstance(block, str) and block]
    for width in (80, 40):
        check_fits(blocks, width, monkeypatch)


WIDE = Table(
    ("name", "count", "said"),
    [
        ("a-name-that-is-rather-long/and/a/path/in/it/with/many/parts.safetensors", "1,234,567", "nothing at all"),
        ("b", "2", " ".join(["several words of ordinary length, of which there are many"] * 4)),
        ("c", "", ""),
    ],
    numbers={1},
)
MANY = Table([f"column {n}" for n in range(9)], [[f"{'x' * n}y" for n in range(9)], [f"word {n}" for n in range(9)]])
ONE = Table(("only",), [("a cell of the only column that there is, which is long enough to fold at forty",)])
EMPTY = Table(("nothing", "here"), [])


@pytest.mark.parametrize("table", [WIDE, MANY, ONE, EMPTY], ids=["wide", "many columns", "one column", "no rows"])
@pytest.mark.parametrize("width", [40, 60, 80, 120, 400])
def test_any_table_fits(table, width, monkeypatch):
    check_fits([table], width, monkeypatch)
    for line in as_text([table], width).split("\n"):
        assert len(line) <= width or len(line.split()) == 1


def test_what_fits_is_drawn_as_a_table(monkeypatch):
    lines = shown_at(200, [WIDE], monkeypatch)
    assert any("─" in line for line in lines) and sum("1,234,567" in line for line in lines) == 1
    assert "─" not in "".join(shown_at(40, [MANY], monkeypatch))


def test_json_is_whole():
    found = json.loads(as_json(["first", WIDE, "", MANY]))
    assert found["texts"] == ["first"] and [len(table["rows"]) for table in found["tables"]] == [3, 2]
    assert found["tables"][0]["rows"][1][2] == WIDE.rows[1][2]


def test_each_file_of_commands_is_looked_at():
    folder = Path(inspect.getsourcefile(main)).parent
    for path in folder.glob("*.py"):
        calls = [n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        shows = sum(isinstance(call, ast.Name) and call.id == "show" for call in calls)
        names = {name for name, command in leaves() if inspect.getsourcefile(command.call) == str(path)}
        assert shows == len(names & PRINT_TABLES.keys()), f"{path.name} shows tables outside of a command's function"

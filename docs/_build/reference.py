"""Writes docs/configuration.md and docs/commands.md from the code: python docs/_build/reference.py"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

DOCS = Path(__file__).parents[1]
_MADE = "<!-- Made by docs/_build/reference.py; edit the code that it reads instead. -->\n"


def main() -> int:
    """Write both pages."""
    (DOCS / "configuration.md").write_text(configuration(), encoding="utf-8")
    (DOCS / "commands.md").write_text(commands(), encoding="utf-8")
    return 0


def configuration() -> str:
    """Make the page of all keys.

    Raises:
        SystemExit: a key is declared without a text below it.
    """
    from gitllm_plugin.host.declarations import declarations

    page = [
        _MADE,
        "# Configuration\n",
        "Every key that the classes of this package read; any other is an error, but in `run` beside a runner or task of",
        "LAVIS's. `null` stands for the default where a key allows nothing else by it. A default \"of the type's file\" is that",
        "of `configs/datasets`. A key that an earlier table has is named with it. [How the sections hang",
        "together](running.md).\n",
    ]
    seen: dict[str, str] = {}
    for each in declarations():
        title = ", ".join(f"`{name}`" for name in each.names)
        page += [f"## `{each.section}`: {each.kind} {title}\n", *_tables(each.settings, each.names[0], seen)]
    return "\n".join(page)


def _tables(settings: type, owner: str, seen: dict[str, str]) -> list[str]:
    """Make a table of a node's keys, and below it those of the nodes inside; a row that stood before is named alone."""
    from gitllm_plugin.config import describe
    from gitllm_plugin.host.declarations import default_of, meaning_of

    keys = describe(settings)
    without = [key.name for key in keys if not key.meaning]
    if without:
        sys.exit(f"{settings.__name__} declares {', '.join(without)} without a text below")
    if not keys:
        return ["No keys of its own.\n"]
    rows = [f"| `{key.name}` | {_as_code(key, default_of(key))} | {_in_table(key.allowed)} | {_in_table(meaning_of(key))} |" for key in keys]
    new = [row for row in rows if row not in seen]
    tables = ["| key | default | allowed | |", "| --- | --- | --- | --- |", *new, ""] if new else []
    for before in dict.fromkeys(seen[row] for row in rows if row in seen):
        names = ", ".join(f"`{key.name}`" for key, row in zip(keys, rows, strict=True) if seen.get(row) == before)
        tables.append(f"As for `{before}`: {names}.\n")
    seen.update({row: owner for row in new})
    for key in keys:
        if key.nested is not None:
            tables += [f"### `{key.nested.WHERE}`\n", *_tables(key.nested, key.nested.WHERE, seen)]
    return tables


def _as_code(key, default: str) -> str:
    from gitllm_plugin.config import MISSING

    return default if key.stands or key.default is MISSING else f"`{default}`"


def _in_table(text: str) -> str:
    return text.replace("|", "\\|")


def commands() -> str:
    """Make the page of all commands and options."""
    from gitllm_plugin.cli.main import build_parser

    page = [_MADE, "# Commands\n", "`gitllm COMMAND --help` says the same, with more examples.\n"]
    for name, parser in _subparsers(build_parser()):
        page.append(f"## `gitllm {name}`\n\n{parser.description}\n")
        rows = [_row(action) for action in parser._actions if _is_shown(action)]
        page += ["| argument | |", "| --- | --- |", *rows, ""] if rows else []
        if parser.epilog:
            page.append(f"```text\n{_few_examples(parser.epilog)}\n```\n")
    page.append(f"## Exit status\n\n```text\n{build_parser().epilog.partition('exit status:')[2].strip(chr(10))}\n```\n")
    return "\n".join(page)


def _few_examples(epilog: str) -> str:
    """Give the first three lines of examples; `--help` has all."""
    return "\n".join(line.removeprefix("  ") for line in epilog.strip().splitlines()[1:4])


def _subparsers(parser: argparse.ArgumentParser, prefix: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                yield prefix + name, child
                yield from _subparsers(child, f"{prefix}{name} ")


def _is_shown(action: argparse.Action) -> bool:
    return not isinstance(action, (argparse._HelpAction, argparse._SubParsersAction))


def _row(action: argparse.Action) -> str:
    names = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    value = "" if not action.option_strings or action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
    choices = f" ({', '.join(map(str, action.choices))})" if action.choices else ""
    return f"| `{names}{value}` | {(action.help or '')}{choices} |".replace("|x", "x")


if __name__ == "__main__":
    sys.exit(main())

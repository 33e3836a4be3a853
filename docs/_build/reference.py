"""Writes docs/configuration.md and docs/commands.md from the code: python docs/_build/reference.py"""

import argparse
import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

DOCS = Path(__file__).parents[1]
MEANINGS = Path(__file__).parent / "meanings.yaml"
KINDS = {"model": "model", "builder": "datasets", "processor": "vis_processor, text_processor", "task": "run", "runner": "run"}
_MADE = "<!-- Made by docs/_build/reference.py; edit meanings.yaml or the code instead. -->\n"
_NOTHING = object()


def main() -> int:
    """Write both pages."""
    (DOCS / "configuration.md").write_text(configuration(), encoding="utf-8")
    (DOCS / "commands.md").write_text(commands(), encoding="utf-8")
    return 0


def configuration() -> str:
    """The page of all keys.

    Raises:
        SystemExit: a key has no sentence in `meanings.yaml`, or a sentence there has no key.
    """
    from gitllm_plugin.modeling import LoraSettings

    meanings = yaml.safe_load(MEANINGS.read_text(encoding="utf-8"))
    page = [
        _MADE,
        "# Configuration\n",
        "Every key that the classes of this package read; any other key is an error. LAVIS's own keys (`arch`,",
        "`model_type`, `runner`, `task`, `build_info`, `name`, ...) stand in its documentation. A dash: no default, or",
        "LAVIS's own. [Training and evaluating](running.md) explains how the sections hang together.\n",
    ]
    used: dict[str, set[str]] = {kind: set() for kind in meanings}
    for kind, name, keys in registered():
        page += [f"## `{KINDS[kind]}`: {kind} `{name}`\n", *_table(kind, keys, meanings, used)]
        if name == "git_llm" and kind == "model":
            lora = {field.name: field.default for field in fields(LoraSettings)}
            page += ["### `model.lora`\n", *_table("lora", lora, meanings, used)]
    left = [f"{kind}.{key}" for kind, known in meanings.items() for key in set(known) - used[kind]]
    if left:
        sys.exit(f"{MEANINGS} has sentences for keys that nothing reads: {', '.join(sorted(left))}")
    return "\n".join(page)


def registered() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Kind, name, and keys with defaults of each class of this package that LAVIS's registry has."""
    import gitllm_plugin

    gitllm_plugin.register()
    from lavis.common.registry import registry

    for kind in KINDS:
        for name, cls in sorted(registry.mapping[f"{kind}_name_mapping"].items()):
            if cls.__module__.startswith("gitllm_plugin.") and getattr(cls, "CONFIG_KEYS", None):
                defaults = _defaults(kind, name, cls)
                yield kind, name, {key: defaults.get(key, _NOTHING) for key in sorted(cls.CONFIG_KEYS)}


def _defaults(kind: str, name: str, cls: type) -> Mapping[str, Any]:
    from gitllm_plugin.modeling import BuildSettings
    from gitllm_plugin.resources import config_path
    from gitllm_plugin.runners import settings

    if kind == "runner":
        return {key: setting.default for key, setting in settings.SETTINGS.items() if setting.default is not None}
    if kind == "builder":
        return yaml.safe_load(Path(config_path("datasets", name, "defaults.yaml")).read_text())["datasets"][name]
    given = {p.name: p.default for p in inspect.signature(cls).parameters.values() if p.default is not p.empty}
    if name == "git_llm":
        return {**given, **{field.name: field.default for field in fields(BuildSettings)}, "loss_on": "answer"}
    return given


def _table(kind: str, keys: Mapping[str, Any], meanings: Mapping[str, Any], used: dict[str, set[str]]) -> list[str]:
    missing = [f"{kind}.{key}" for key in keys if key not in meanings[kind]]
    if missing:
        sys.exit(f"{MEANINGS} has no sentence for {', '.join(missing)}")
    used[kind] |= set(keys)
    rows = [f"| `{key}` | {_show(default)} | {meanings[kind][key]} |" for key, default in keys.items()]
    return ["| key | default | |", "| --- | --- | --- |", *rows, ""]


def _show(default: Any) -> str:
    if default is _NOTHING:
        return "-"
    if isinstance(default, (tuple, frozenset)):
        default = list(default)
    return f"`{json.dumps(default)}`"


def commands() -> str:
    """The page of all commands and options."""
    from gitllm_plugin.cli.main import build_parser

    page = [_MADE, "# Commands\n", "`gitllm COMMAND --help` says the same, with more examples.\n"]
    for name, parser in _subparsers(build_parser()):
        page.append(f"## `gitllm {name}`\n\n{parser.description}\n")
        rows = [_row(action) for action in parser._actions if _is_shown(action)]
        page += ["| argument | |", "| --- | --- |", *rows, ""] if rows else []
        if parser.epilog:
            page.append(f"```text\n{parser.epilog.strip()}\n```\n")
    page.append(f"## Exit status\n\n```text\n{build_parser().epilog.partition('exit status:')[2].strip(chr(10))}\n```\n")
    return "\n".join(page)


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

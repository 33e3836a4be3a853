"""What the registered classes of this package declare of their configuration, for people who ask."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from gitllm_plugin.config import MISSING, Key, describe, did_you_mean
from gitllm_plugin.errors import ConfigError

SECTIONS = {
    "model": "model",
    "builder": "datasets",
    "processor": "vis_processor, text_processor",
    "task": "run",
    "runner": "run",
}
"""The section of a configuration that names a registered class, by kind of class."""


@dataclass(frozen=True)
class Declaration:
    """What one class reads, or several that read the same.

    Attributes:
        kind: of class: ``model``, ``builder``, ``processor``, ``task`` or ``runner``.
        names: registered names.
        settings: the declaration.
    """

    kind: str
    names: tuple[str, ...]
    settings: type

    @property
    def section(self) -> str:
        """Name the section that the class is named in; a processor's own is for pictures or for texts."""
        return self.settings.WHERE if self.kind == "processor" else SECTIONS[self.kind]  # type: ignore[attr-defined]

    @property
    def title(self) -> str:
        """Give the heading: where it stands in a configuration, and whose it is."""
        return f"{self.section}: {self.kind} {', '.join(self.names)}"

    def paths(self) -> Iterator[tuple[str, Key]]:
        """List the keys with their paths below the node, those of nodes inside it too."""
        yield from _keys(self.settings, "")


def declarations() -> Iterator[Declaration]:
    """List the declarations of the classes of this package that LAVIS's registry has; a shared one once."""
    import gitllm_plugin

    gitllm_plugin.register()
    from lavis.common.registry import registry

    for kind in SECTIONS:
        names: dict[type, list[str]] = {}
        for name, cls in sorted(registry.mapping[f"{kind}_name_mapping"].items()):
            if cls.__module__.startswith("gitllm_plugin.") and hasattr(cls, "Settings"):
                names.setdefault(cls.Settings, []).append(name)
        yield from (Declaration(kind, tuple(found), settings) for settings, found in names.items())


def find_keys(word: str | None) -> list[tuple[Declaration, list[tuple[str, Key]]]]:
    """Find the keys that a person asks for.

    Args:
        word: a section (``run``), a registered name (``m3it_wds``) or a part of a key's path (``lora``); None: all.

    Returns:
        Declarations that have any, each with the paths and keys that were found.

    Raises:
        ConfigError: nothing is called so.
    """
    every = list(declarations())
    found = []
    for each in every:
        whole = word is None or word in (*each.names, each.kind, each.section)
        keys = [(path, key) for path, key in each.paths() if whole or str(word) in path]
        if keys:
            found.append((each, keys))
    if not found:
        names = ", ".join(dict.fromkeys([*SECTIONS.values(), *(name for each in every for name in each.names)]))
        paths = {path for each in every for path, _ in each.paths()}
        hint = did_you_mean(word, paths)
        raise ConfigError(f"no key has {word!r} in its name, and nothing is called so{hint}; there are: {names}")
    return found


def default_of(key: Key) -> str:
    """Show a key's default as YAML has it, or say in words what stands for it, or that the key is needed."""
    if key.stands is not None:
        return key.stands
    if key.default is MISSING:
        return "needed"
    return json.dumps(list(key.default) if isinstance(key.default, tuple) else key.default)


def meaning_of(key: Key) -> str:
    """Say what a key is for, and when it is read at all."""
    return key.meaning.replace("``", "`") + (f" Read only {key.read}." if key.read else "")


def _keys(settings: type, above: str) -> Iterator[tuple[str, Key]]:
    for key in describe(settings):
        yield f"{above}{key.name}", key
        if key.nested is not None:
            yield from _keys(key.nested, f"{above}{key.name}.")

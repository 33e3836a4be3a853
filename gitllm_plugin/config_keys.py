"""Keys and overrides of a configuration: what LAVIS itself reads, and refusing what nothing would read."""

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gitllm_plugin.errors import ConfigError

DATASET_KEYS = frozenset({"type", "data_type", "build_info", "vis_processor", "text_processor"})
"""Keys of a data set's node that LAVIS reads, whatever the builder."""


def check_keys(where: str, given: Iterable[str], allowed: Collection[str]) -> None:
    """Checks the keys of one configuration node.

    Args:
        where: the node's dotted path, for the message.
        given: its keys.
        allowed: the keys that are read.

    Raises:
        ConfigError: naming every key that is not allowed, its nearest allowed key, and all of these.
    """
    unknown = []
    for key in given:
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed, n=1)
            unknown.append(f"'{key}'" + (f" (did you mean '{near[0]}'?)" if near else ""))
    if unknown:
        plural = "s" if len(unknown) > 1 else ""
        known = ", ".join(sorted(allowed))
        raise ConfigError(f"{where}: unknown key{plural} {', '.join(unknown)}; the keys there are: {known}")


def wrong_type(value: Any, kind: type) -> str | None:
    """What a value should have been, in words; None where it is of that type.

    Numbers may also be written as text: to YAML, `1e-3` is text.
    """
    if kind is bool:
        return None if isinstance(value, bool) else "true or false"
    if kind is int:
        return None if _is_number(value) and float(value).is_integer() else "a whole number"
    if kind is float:
        return None if _is_number(value) else "a number"
    if kind is list:
        return None if isinstance(value, Sequence) and not isinstance(value, str) else "a list"
    if kind is dict:
        return None if isinstance(value, Mapping) else "a mapping"
    return None if isinstance(value, str) else "text"


def type_faults(where: str, node: Mapping[str, Any], kinds: Mapping[str, type]) -> Iterable[str]:
    """What is wrong with the types of a node's values; a missing one, or null, is not.

    Args:
        where: the node's dotted path.
        node: the values by key.
        kinds: the type of each key, see :func:`wrong_type`.
    """
    for key, kind in kinds.items():
        fault = None if node.get(key) is None else wrong_type(node[key], kind)
        if fault:
            yield f"{where}.{key} is {node[key]!r}, expected {fault}"


def missing_file(where: str, path: str) -> Iterable[str]:
    """That a file or folder is not there."""
    if not Path(path).expanduser().exists():
        yield f"{where} is {path}, which does not exist (looked from {Path.cwd()})"


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True

"""Refuses keys that nothing would read, where a class is configured without the launcher's own check."""

import difflib
from collections.abc import Collection, Iterable

from gitllm_plugin.errors import ConfigError


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

"""How much a configuration's interpolations (``${run.seed}``) make of it, counted before anything is put in.

OmegaConf evaluates what is referred to anew each time: ``b: ${a}${a}``, ``c: ${b}${b}`` and so on is doubled by every
line, as text, as a mapping or as work alone.
"""

import re
from collections.abc import Iterator
from typing import Any

from gitllm_plugin.errors import ConfigError

MOST = 1_000_000
"""Letters and values that a configuration may have with everything put in; a value or a reference counts ten."""

_EACH = 10
_TOKEN = re.compile(r"\$\{|\}|[^${}]+|\$")
_NAMES = re.compile(r"[^\s,:\[\]{}'\"()=]+(?:\[[^\]]*\][^\s,:\[\]{}'\"()=]*)*")
_OF_ENVIRONMENT = "oc.env"


def check_interpolations(content: Any) -> None:
    """Refuse what would become too large.

    Args:
        content: plain dictionaries and lists, in which interpolations stand as text.

    Raises:
        ConfigError: it would, or something holds itself.
    """
    _Counter(content).count(())


class _Counter:
    def __init__(self, content: Any):
        self._content = content
        self._sizes: dict[tuple[Any, ...], int] = {}
        self._above: set[tuple[Any, ...]] = set()

    def count(self, place: tuple[Any, ...]) -> int:
        if place in self._sizes:
            return self._sizes[place]
        if place in self._above:
            # What refers to itself in earnest OmegaConf tells by its names; here it only has to end.
            raise ConfigError(f"{_name(place)} holds itself by an interpolation: infinite recursion")
        self._above.add(place)
        size = self._count_value(place)
        self._above.remove(place)
        if size > MOST:
            raise ConfigError(
                f"{_name(place)} would have more than {MOST:,} letters and values with its interpolations put in; a "
                "configuration has fewer"
            )
        self._sizes[place] = size
        return size

    def _count_value(self, place: tuple[Any, ...]) -> int:
        value = self._at(place)
        if isinstance(value, (dict, list)):
            keys = value if isinstance(value, dict) else range(len(value))
            return _EACH + sum(self.count((*place, key)) for key in keys)
        if not isinstance(value, str) or "${" not in value:
            return _EACH + (len(value) if isinstance(value, str) else 0)
        return _EACH + len(value) + sum(_EACH + self.count(there) for there in self._referred(value, place[:-1]))

    def _at(self, place: tuple[Any, ...]) -> Any:
        value = self._content
        for key in place:
            value = value[key]
        return value

    def _referred(self, text: str, parent: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        """Find the places that a text refers to, rather one too many: which a reference in a reference means, or a
        function's argument, is known only when it is evaluated."""
        depth = 0
        for token in _TOKEN.findall(text):
            if token == "${":
                depth += 1
            elif token == "}":
                depth = max(depth - 1, 0)
            elif depth and not token.lstrip().startswith(_OF_ENVIRONMENT):
                for name in _NAMES.findall(token):
                    if (found := self._find(name, parent)) is not None:
                        yield found

    def _find(self, name: str, parent: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Follow a name as far as it leads: what lies behind another reference is a part of that one's value."""
        dots = len(name) - len(name.lstrip("."))
        place = parent[: max(len(parent) - dots + 1, 0)] if dots else ()
        begin = place
        for key in re.split(r"[.\[\]]+", name[dots:].rstrip(".]")):
            value = self._at(place)
            if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
                place = (*place, int(key))
            elif isinstance(value, dict) and (known := [each for each in value if str(each) == key]):
                place = (*place, known[0])
            else:
                break
        return None if place == begin and not dots else place


def _name(place: tuple[Any, ...]) -> str:
    return ".".join(map(str, place)) or "it"

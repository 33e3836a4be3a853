"""How something of LAVIS's is replaced: once, however often it is asked for."""

import importlib
import inspect
import logging
from collections.abc import Callable, Iterable
from typing import Any

_MARK = "_gitllm_repairs"


def repair_of(*places: str) -> Callable[[Callable[[Any], Any]], Callable[[], None]]:
    """Make a function that is given what LAVIS has, and gives what takes its place, one that puts it there.

    What is put there carries the function's name: done again it would wrap its own work. The mark is on LAVIS's side,
    so that it goes when a module of LAVIS's is loaded anew, and stays when one of this package is.

    Args:
        places: each ``module:name`` or ``module:Class.name``.
    """

    def decorate(repair: Callable[[Any], Any]) -> Callable[[], None]:
        def apply() -> None:
            for place in places:
                _put(place, repair)

        apply.__name__, apply.__doc__ = repair.__name__, repair.__doc__
        return apply

    return decorate


class Repairs(list[Callable[[], None]]):
    """Repairs in the order in which they are applied: those of a file."""

    def of(self, *places: str) -> Callable[[Callable[[Any], Any]], Callable[[], None]]:
        """Make a function a repair of these places, see :func:`repair_of`, and the last of these."""

        def decorate(function: Callable[[Any], Any]) -> Callable[[], None]:
            self.append(repair_of(*places)(function))
            return self[-1]

        return decorate


def apply_all(repairs: Iterable[Callable[[], None]]) -> None:
    """Apply repairs of LAVIS's own models: where one does not fit these libraries, that is said, and ours go on."""
    for repair in repairs:
        try:
            repair()
        except (AttributeError, ImportError, TypeError) as error:
            logging.warning("some of LAVIS's own models may not work: %s: %s", repair.__name__, error)


def _put(place: str, repair: Callable[[Any], Any]) -> None:
    module, _, path = place.partition(":")
    owner: Any = importlib.import_module(module)
    *classes, name = path.split(".")
    for inner in classes:
        owner = getattr(owner, inner)
    found = inspect.getattr_static(owner, name)
    done = getattr(_marked(found), _MARK, frozenset())
    if repair.__name__ in done:
        return
    replacement = repair(found)
    setattr(_marked(replacement), _MARK, done | {repair.__name__})
    setattr(owner, name, replacement)


def _marked(thing: Any) -> Any:
    """Give what of a thing can carry a mark: a property itself cannot."""
    if isinstance(thing, staticmethod):
        return thing.__func__
    return thing.fget if isinstance(thing, property) else thing

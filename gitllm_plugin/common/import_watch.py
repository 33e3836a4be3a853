"""Acting on the first import of a module that is not loaded yet, without importing it: stdlib only, and cheap."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from typing import Any


def nothing() -> None:
    """Do nothing."""


class ImportWatcher:
    """A finder in ``sys.meta_path`` that acts once, around the body of one module.

    Looking for the module without importing it (``importlib.util.find_spec``) has no effect.

    Args:
        name: of the module.
        after: called when its body has run.
        before: called before; False: ``after`` is not called.
    """

    def __init__(
        self, name: str, after: Callable[[], Any] = nothing, before: Callable[[], bool | None] = nothing
    ) -> None:
        self.name = name
        self._after = after
        self._before = before
        self._looking = False

    def __repr__(self) -> str:
        return f"<gitllm_plugin's watcher of {self.name}>"

    def __eq__(self, other: object) -> bool:
        """Tell whether both would do the same."""
        if not isinstance(other, ImportWatcher):
            return NotImplemented
        return self.does == other.does

    def __hash__(self) -> int:
        return hash(self.does)

    @property
    def does(self) -> tuple[str, Callable[..., Any], Callable[..., Any]]:
        """What is waited for, and what is called."""
        return self.name, self._before, self._after

    def watch(self) -> None:
        """Wait for the first import; others may wait for the same, but one that does the same is not added."""
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)  # type: ignore[arg-type]

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Give the spec of the module with a loader that acts; None for any other module."""
        if name != self.name or self._looking:
            return None
        self._looking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._looking = False
        if spec is not None and spec.loader is not None:
            run_body = spec.loader.exec_module
            spec.loader.exec_module = lambda module: self._load(module, run_body)
        return spec

    def _load(self, module: Any, run_body: Callable[[Any], None]) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)  # type: ignore[arg-type]
        goes_on = self._before()
        run_body(module)
        if goes_on is not False:
            self._after()


def when_imported(name: str, call: Callable[[], Any]) -> None:
    """Call something when a module has been imported: now, if it has been already."""
    if name in sys.modules:
        call()
    else:
        ImportWatcher(name, call).watch()

"""What the ``.pth`` line of ``gitllm hook install`` runs at every start of Python: keep it tiny, stdlib only.

It adds a finder that does nothing until ``lavis`` is imported for the first time.
"""

import os
import sys

KILL_SWITCH = "GITLLM_HOOK"


def arm() -> None:
    """Wait for the first ``import lavis``, unless the environment says GITLLM_HOOK=0; twice is as once."""
    if os.environ.get(KILL_SWITCH) != "0" and not any(isinstance(each, LavisWatcher) for each in sys.meta_path):
        sys.meta_path.insert(0, LavisWatcher())


class LavisWatcher:
    """Acts once: prepares the libraries before the body of ``lavis`` runs, registers the plugin after.

    Whatever fails in the plugin becomes a warning on stderr; LAVIS is then imported as if there were no hook.
    """

    looking = False

    def find_spec(self, name, path=None, target=None):
        """Give the spec of ``lavis`` with a loader that registers the plugin; None for any other module.

        Looking for ``lavis`` without importing it has no effect.
        """
        if name != "lavis" or self.looking:
            return None
        import importlib.util

        self.looking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.looking = False
        if spec is not None and spec.loader is not None:
            run_body = spec.loader.exec_module
            spec.loader.exec_module = lambda module: self._load(module, run_body)
        return spec

    def _load(self, module, run_body) -> None:
        sys.meta_path.remove(self)
        prepared = _warn_of_failure(_prepare_libraries)
        run_body(module)
        if prepared:
            _warn_of_failure(_register)


def _prepare_libraries() -> None:
    from gitllm_plugin.host.locate import prepare_libraries

    prepare_libraries()


def _register() -> None:
    import gitllm_plugin

    gitllm_plugin.register()


def _warn_of_failure(step) -> bool:
    """Say whether ``step()`` went well; a plugin must never break the host."""
    try:
        step()
    except Exception as error:  # noqa: BLE001
        _warn(error)
        return False
    return True


def _warn(error: Exception) -> None:
    print(
        f"warning: gitllm_plugin could not be added to LAVIS, which goes on without it: "
        f"{type(error).__name__}: {error} (set {KILL_SWITCH}=0 to switch the hook off)",
        file=sys.stderr,
    )

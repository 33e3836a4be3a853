"""What the `.pth` line of `gitllm hook install` runs at every start of Python: keep it tiny, stdlib only.

It adds a finder that does nothing until `lavis` is imported for the first time.
"""

import os
import sys

KILL_SWITCH = "GITLLM_HOOK"


def arm() -> None:
    """Wait for the first `import lavis`, unless the environment says GITLLM_HOOK=0."""
    if os.environ.get(KILL_SWITCH) != "0":
        sys.meta_path.insert(0, LavisWatcher())


class LavisWatcher:
    """Acts once: prepares the libraries before `lavis` is imported, registers the plugin after.

    Whatever fails in the plugin becomes a warning on stderr; LAVIS is then imported as if there were no hook.
    """

    def find_spec(self, name, path=None, target=None):
        """The spec of `lavis` whose loader registers the plugin afterwards; None for any other module."""
        if name != "lavis":
            return None
        sys.meta_path.remove(self)
        try:
            return _spec_that_registers()
        except Exception as error:  # noqa: BLE001 - a plugin must never break the host
            _warn(error)
            return None


def _spec_that_registers():
    import importlib.util

    from gitllm_plugin.host.locate import prepare_libraries

    if importlib.util.find_spec("lavis") is None:
        return None
    prepare_libraries()
    spec = importlib.util.find_spec("lavis")  # again: its modules are now loaded with placeholders at hand
    run_body = spec.loader.exec_module

    def exec_module(module):
        run_body(module)
        try:
            import gitllm_plugin

            gitllm_plugin.register()
        except Exception as error:  # noqa: BLE001 - a plugin must never break the host
            _warn(error)

    spec.loader.exec_module = exec_module
    return spec


def _warn(error: Exception) -> None:
    print(
        f"warning: gitllm_plugin could not be added to LAVIS, which goes on without it: "
        f"{type(error).__name__}: {error} (set {KILL_SWITCH}=0 to switch the hook off)",
        file=sys.stderr,
    )

"""What the ``.pth`` line of ``gitllm hook install`` runs at every start of Python: keep it tiny, stdlib only.

It adds a finder that does nothing until ``lavis`` is imported for the first time.
"""

import os
import sys

from gitllm_plugin.common.import_watch import ImportWatcher

KILL_SWITCH = "GITLLM_HOOK"


def arm() -> None:
    """Wait for the first ``import lavis``, unless the environment says GITLLM_HOOK=0; twice is as once.

    The libraries are prepared before the body of ``lavis`` runs, and the plugin is registered after. Whatever fails in
    the plugin becomes a warning on stderr; LAVIS is then imported as if there were no hook.
    """
    if os.environ.get(KILL_SWITCH) != "0":
        ImportWatcher("lavis", before=_prepare_libraries, after=_register).watch()


def _warns_of_failure(step):
    """Let ``step()`` say whether it went well; a plugin must never break the host."""

    def warning() -> bool:
        try:
            step()
        except Exception as error:  # noqa: BLE001
            _warn(error)
            return False
        return True

    return warning


@_warns_of_failure
def _prepare_libraries() -> None:
    from gitllm_plugin.host.locate import prepare_libraries

    prepare_libraries()


@_warns_of_failure
def _register() -> None:
    import gitllm_plugin

    gitllm_plugin.register()


def _warn(error: Exception) -> None:
    print(
        f"warning: gitllm_plugin could not be added to LAVIS, which goes on without it: "
        f"{type(error).__name__}: {error} (set {KILL_SWITCH}=0 to switch the hook off)",
        file=sys.stderr,
    )

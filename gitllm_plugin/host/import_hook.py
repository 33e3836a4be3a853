"""The opt-in import hook: after ``gitllm hook install``, plain ``python train.py`` of LAVIS finds the plugin.

One line in a ``.pth`` file of this environment's site-packages, which Python runs at start.
"""

import dataclasses
import os
import sysconfig
from pathlib import Path

from gitllm_plugin.common.files import write_atomically
from gitllm_plugin.errors import GitLLMError, StorageError
from gitllm_plugin.host.autoload import KILL_SWITCH

FILE_NAME = "gitllm_plugin_hook.pth"
# Python runs a line of a .pth file if it begins with `import`. ImportError: the plugin was uninstalled.
_STATEMENTS = r"try:\n from gitllm_plugin.host.autoload import arm\nexcept ImportError: pass\nelse: arm()"
LINE = f'import sys; exec("{_STATEMENTS}")\n'


class HookError(GitLLMError, OSError):
    """The hook's file cannot be written or removed."""


@dataclasses.dataclass(frozen=True)
class HookStatus:
    """State of the hook in one environment.

    Attributes:
        path: where its file is, or would be.
        installed: whether the file is there.
        switched_off: whether the environment variable GITLLM_HOOK=0 disables it here.
    """

    path: Path
    installed: bool
    switched_off: bool


def status(site_packages: str | Path | None = None) -> HookStatus:
    """Look at the hook in ``site_packages`` (this environment's by default)."""
    path = Path(site_packages or sysconfig.get_path("purelib")) / FILE_NAME
    return HookStatus(path, path.is_file(), os.environ.get(KILL_SWITCH) == "0")


def install(site_packages: str | Path | None = None) -> HookStatus:
    """Write the hook's file; writing it again changes nothing.

    Raises:
        HookError: the folder cannot be written to.
    """
    path = status(site_packages).path
    try:
        # Whole or not at all: Python runs what there is of it at every start.
        write_atomically(path, LINE)
    except StorageError as error:
        raise HookError(f"{error} Use an environment that you own.") from error
    return status(site_packages)


def remove(site_packages: str | Path | None = None) -> HookStatus:
    """Delete the hook's file if it is there.

    Raises:
        HookError: the file cannot be deleted.
    """
    path = status(site_packages).path
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise HookError(f"cannot delete {path}: {error.strerror}") from error
    return status(site_packages)

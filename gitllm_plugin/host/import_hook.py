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
# Python runs a line of a .pth file if it begins with `import`, at every start and in virtual environments twice. What
# fails in it must not stop Python, nor print more than a line. Nothing is said where the plugin was uninstalled.
_STATEMENTS = (
    "try:",
    " from gitllm_plugin.host.autoload import arm",
    " arm()",
    "except Exception as error:",
    " first = vars(sys).setdefault('_gitllm_hook', error)",
    " if getattr(error, 'name', '') != 'gitllm_plugin' and first is error: print(",
    f"  f'note: {FILE_NAME} does nothing ({{error!r:.150}}): gitllm hook install writes it anew,',",
    "  'deleting it ends this', file=sys.stderr)",
)
_SCRIPT = r"\n".join(_STATEMENTS)
LINE = f'import os, sys; os.environ.get("{KILL_SWITCH}") == "0" or exec("{_SCRIPT}")\n'


class HookError(GitLLMError, OSError):
    """The hook's file cannot be written or removed."""


@dataclasses.dataclass(frozen=True)
class HookStatus:
    """State of the hook in one environment.

    Attributes:
        path: where its file is, or would be.
        installed: whether the file is there.
        switched_off: whether the environment variable GITLLM_HOOK=0 disables it here.
        outdated: whether another version of the package wrote it; installing writes it anew.
    """

    path: Path
    installed: bool
    switched_off: bool
    outdated: bool = False


def status(site_packages: str | Path | None = None) -> HookStatus:
    """Look at the hook in ``site_packages`` (this environment's by default)."""
    path = Path(site_packages or sysconfig.get_path("purelib")) / FILE_NAME
    installed = path.is_file()
    outdated = installed and path.read_bytes() != LINE.encode()
    return HookStatus(path, installed, os.environ.get(KILL_SWITCH) == "0", outdated)


def install(site_packages: str | Path | None = None) -> HookStatus:
    """Write the hook's file; writing it again changes nothing.

    Raises:
        HookError: the folder cannot be written to.
    """
    path = status(site_packages).path
    try:
        if not path.parent.is_dir():
            raise HookError(f"{path} cannot be written: there is no such folder. Use an environment that you own.")
        write_atomically(path, LINE.encode())  # half a line would be an error at every start of Python
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

"""Runs Python modules as commands of their own, and waits for them through Ctrl-C."""

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence

_INTERRUPTED = (130, -2)
"""How a process ends after Ctrl-C: with the shells' exit status for it, or by the signal itself."""


def run_module(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
    """Runs `python -m` with this interpreter, showing what it prints.

    Ctrl-C reaches the command too, which may have something to save: it is waited for, however long it takes.

    Args:
        arguments: the module and its arguments.
        environment: variables for it, beside this process's own.

    Returns:
        The exit status.

    Raises:
        KeyboardInterrupt: the command ended because of Ctrl-C.
    """
    process = subprocess.Popen([sys.executable, "-m", *arguments], env={**os.environ, **(environment or {})})
    while True:
        try:
            status = process.wait()
            break
        except KeyboardInterrupt:
            continue
    if status in _INTERRUPTED:
        raise KeyboardInterrupt
    return status


def show_command(arguments: Sequence[str]) -> str:
    """The command as one types it."""
    return shlex.join(["python", "-m", *arguments])

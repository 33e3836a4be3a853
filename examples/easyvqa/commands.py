"""Runs Python modules as commands of their own, and waits for them through Ctrl-C."""

import os
import subprocess
import sys
from collections.abc import Sequence

from examples.easyvqa.errors import DemoError
from examples.easyvqa.paths import CACHE_VARIABLE, Cache

_INTERRUPTED = (130, -2)
"""How a process ends after Ctrl-C: with the shells' exit status for it, or by the signal itself."""


def run_module(arguments: Sequence[str], cache: Cache) -> None:
    """Runs `python -m` with this interpreter, showing what it prints.

    Ctrl-C reaches the command too, which may have something to save: it is waited for, however long it takes.

    Args:
        arguments: the module and its arguments.
        cache: the cache folder, which the command finds in its environment.

    Raises:
        KeyboardInterrupt: the command ended because of Ctrl-C.
        DemoError: the command failed.
    """
    environment = {**os.environ, CACHE_VARIABLE: str(cache.root)}
    process = subprocess.Popen([sys.executable, "-m", *arguments], env=environment)
    while True:
        try:
            status = process.wait()
            break
        except KeyboardInterrupt:
            continue
    if status in _INTERRUPTED:
        raise KeyboardInterrupt
    if status != 0:
        raise DemoError(
            f"`{show_command(arguments)}` ended with exit status {status}; the reason stands above this line"
        )


def show_command(arguments: Sequence[str]) -> str:
    """The command as one types it."""
    return " ".join(["python", "-m", *arguments])

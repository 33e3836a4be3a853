"""Runs the demonstration's commands, with its cache folder in their environment."""

from collections.abc import Sequence

from examples.easyvqa.errors import DemoError
from examples.easyvqa.paths import CACHE_VARIABLE, Cache
from gitllm_plugin.experiments import processes
from gitllm_plugin.experiments.processes import show_command

__all__ = ["run_module", "show_command"]


def run_module(arguments: Sequence[str], cache: Cache) -> None:
    """Runs `python -m` with this interpreter, showing what it prints.

    Args:
        arguments: the module and its arguments.
        cache: the cache folder, which the command finds in its environment.

    Raises:
        KeyboardInterrupt: the command ended because of Ctrl-C.
        DemoError: the command failed.
    """
    status = processes.run_module(arguments, {CACHE_VARIABLE: str(cache.root)})
    if status != 0:
        raise DemoError(
            f"`{show_command(arguments)}` ended with exit status {status}; the reason stands above this line"
        )

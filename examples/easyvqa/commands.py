"""Run the demonstration's commands, with its cache folder in their environment."""

import sys
from collections.abc import Callable, Mapping, Sequence

from examples.easyvqa.errors import DemoError
from examples.easyvqa.paths import CACHE_VARIABLE, Cache
from gitllm_plugin.common import processes
from gitllm_plugin.common.processes import show_command
from gitllm_plugin.errors import GitLLMError
from gitllm_plugin.experiments.commands import explain_end

__all__ = ["exit_status", "run_module", "show_command"]


def exit_status(steps: Callable[[], None]) -> int:
    """Run steps that can be gone on with.

    Returns:
        0 done, 1 after an error that was printed, 130 interrupted.
    """
    try:
        steps()
    except GitLLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on from here.", file=sys.stderr)
        return 130
    return 0


def run_module(arguments: Sequence[str], cache: Cache, environment: Mapping[str, str] | None = None) -> None:
    """Run ``python -m`` with this interpreter, showing what it prints.

    Args:
        arguments: the module and its arguments.
        cache: the cache folder, which the command finds in its environment.
        environment: what it finds there besides.

    Raises:
        KeyboardInterrupt: when the command ended because of Ctrl-C.
        DemoError: when the command failed; says how it ended and, where it was killed, which batch size to lower.
    """
    status = processes.run_module(arguments, {CACHE_VARIABLE: str(cache.root), **(environment or {})})
    if status != 0:
        raise DemoError(explain_end(arguments, status))

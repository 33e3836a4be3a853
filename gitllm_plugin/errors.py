"""Errors that this package raises on purpose, each with a message a user can act on, and a command's exit status."""

import sys
from collections.abc import Callable

from gitllm_plugin.secret_values import hide_secrets

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


class GitLLMError(Exception):
    """Root of the package's own errors; the command line prints them without a traceback."""


class ConfigError(GitLLMError, ValueError):
    """A configuration, an option or a name in one is wrong."""


class DataError(GitLLMError, ValueError):
    """A data file, a row or an image cannot be used."""


class HostError(GitLLMError, ImportError):
    """LAVIS, or something it cannot do without, is missing or does not load."""


class StorageError(GitLLMError, OSError):
    """A file of a run cannot be written: the disk is full, or the folder cannot be written to."""


class LostProcessError(GitLLMError, RuntimeError):
    """A process that a run needs is gone: a worker of a data loader was killed, or another rank ended."""


def first_line(error: Exception) -> str:
    """Give the first line of what an error says, or its name where it says nothing."""
    said = str(error).strip().splitlines()
    return said[0] if said else type(error).__name__


def exit_status(call: Callable[[], int]) -> int:
    """Give a command's exit status: what ``call`` gives, or 2 or 130 and one line instead of a traceback."""
    try:
        return call()
    except GitLLMError as error:
        print(f"error: {hide_secrets(str(error))}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED

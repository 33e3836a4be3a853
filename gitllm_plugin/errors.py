"""Errors that this package raises on purpose, each with a message a user can act on, and a command's exit status."""

import re
import shutil
import sys
import textwrap
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


def tell(text: str) -> None:
    """Print to standard error; on a terminal broken between words."""
    terminal = shutil.get_terminal_size().columns if sys.stderr.isatty() else None
    print(text if terminal is None else break_lines(text, terminal), file=sys.stderr)


def break_lines(text: str, width: int) -> str:
    """Break lines between words, but none in a path or in what stands in backticks: both are there to be copied."""
    broken = []
    for line in text.splitlines():
        whole = re.sub(r"`[^`]*`", lambda quoted: quoted[0].replace(" ", "\0"), line)
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        broken += textwrap.wrap(
            whole, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        ) or [""]
    return "\n".join(broken).replace("\0", " ")


def exit_status(call: Callable[[], int]) -> int:
    """Give a command's exit status: what ``call`` gives, or 2 or 130 and one line instead of a traceback."""
    try:
        return call()
    except GitLLMError as error:
        tell(f"error: {hide_secrets(str(error))}")
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED

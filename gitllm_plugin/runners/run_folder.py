"""The folder of one run: made once, found again by name, and what it says about how it was made."""

import contextlib
import errno
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from gitllm_plugin.errors import ConfigError, StorageError

PACKAGES = ("torch", "transformers", "peft", "salesforce-lavis", "numpy")


@contextlib.contextmanager
def storage_errors() -> Iterator[None]:
    """A block whose errors of a full or read-only disk become the package's own.

    Raises:
        StorageError: In their place.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            raise
        raise StorageError(f"{error.filename or 'a file of the run'} cannot be written: {error.strerror}") from error


def create_run_folder(output_dir: Path) -> Path:
    """Make `output_dir/<YYYYmmddHHMMSS>`, with `_2`, `_3`, ... behind it when that is taken.

    Raises:
        ConfigError: The folder cannot be made.
    """
    stamp = time.strftime("%Y%m%d%H%M%S")
    number = 1
    while True:
        folder = output_dir / (stamp if number == 1 else f"{stamp}_{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if not folder.is_dir():
                raise ConfigError(f"run.output_dir: {folder} exists and is not a folder") from None
            number += 1
        except OSError as error:
            raise ConfigError(
                f"run.output_dir is {output_dir}, where no folder can be made: {error.strerror}"
            ) from error


def point_to(folder: Path, name: str) -> None:
    """Let `name`, beside `folder`, be a link to it; where links cannot be made, a text file with its path."""
    link = folder.parent / name
    temporary = folder.parent / f".{name}.{os.getpid()}"
    try:
        temporary.symlink_to(folder.name, target_is_directory=True)
    except OSError:
        temporary.write_text(f"{folder}\n")
    os.replace(temporary, link)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def source_revision() -> str | None:
    """`git describe` of the checkout this package is imported from; None for an installed copy."""
    package = Path(__file__).resolve().parents[1]
    tracked = ["git", "-C", str(package), "ls-files", "--error-unmatch", "__init__.py"]
    describe = ["git", "-C", str(package), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        subprocess.run(tracked, check=True, capture_output=True)
        return subprocess.run(describe, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def write_versions(path: Path, **facts: Any) -> None:
    """Write the versions, the source's revision and the command of this process as JSON, and ``facts`` beside them."""
    from gitllm_plugin import __version__

    versions = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "gitllm_plugin": __version__,
        **{package: _version(package) for package in PACKAGES},
        "source_revision": source_revision(),
        "command": sys.argv,
        **facts,
    }
    path.write_text(json.dumps(versions, indent=2) + "\n")

"""The folder of one run: made once, found again by name, and what it says about how it was made."""

import json
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from gitllm_plugin.common.files import atomic_path, remove_abandoned, write_atomically
from gitllm_plugin.common.run_files import CONFIG
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.runners.saved_config import without_secrets

PACKAGES = ("torch", "transformers", "peft", "salesforce-lavis", "numpy")


def create_run_folder(output_dir: Path) -> Path:
    """Make ``output_dir/<YYYYmmddHHMMSS>``, with ``_2``, ``_3``, ... behind it when that is taken.

    Raises:
        ConfigError: the folder cannot be made.
    """
    stamp = time.strftime("%Y%m%d%H%M%S")
    number = 1
    while True:
        folder = output_dir / (stamp if number == 1 else f"{stamp}_{number}")
        try:
            # mkdir itself decides who is first, of runs that start in the same second.
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            if not folder.is_dir():
                raise ConfigError(f"run.output_dir: {folder} exists and is not a folder") from None
            number += 1
        except OSError as error:
            raise ConfigError(
                f"run.output_dir is {output_dir}, where no folder can be made: {error.strerror}"
            ) from error
    # Of runs that were killed and are not gone on with, a checkpoint that was half written would lie there for ever.
    for place in (*output_dir.glob("[0-9]*"), *output_dir.glob("[0-9]*/*")):
        remove_abandoned(place)
    return folder


def point_to(folder: Path, name: str) -> None:
    """Let ``name``, beside ``folder``, be a link to it; where links cannot be made, a text file with its path."""
    # A link cannot be changed in place: replacing it leaves no moment without one.
    with atomic_path(folder.parent / name, durable=False) as partial:
        try:
            partial.symlink_to(folder.name, target_is_directory=True)
        except OSError:
            partial.write_text(f"{folder}\n", encoding="utf-8")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def source_revision() -> str | None:
    """Give ``git describe`` of the checkout that this package is imported from; None for an installed copy."""
    package = Path(__file__).resolve().parents[1]
    # A copy installed into a virtual environment may lie inside some other repository: it is not tracked there.
    tracked = ["git", "-C", str(package), "ls-files", "--error-unmatch", "__init__.py"]
    describe = ["git", "-C", str(package), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        subprocess.run(tracked, check=True, capture_output=True)
        return subprocess.run(describe, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def describe(folder: Path, config: Any, link: str, **facts: Any) -> None:
    """Write how a run was made: ``config.yaml``, ``versions.json`` and a link to the folder.

    Args:
        folder: the run's.
        config: OmegaConf's node of the whole configuration, written with what it refers to but secrets.
        link: the name of the link, beside the folder.
        **facts: written beside the versions of packages, the source's revision and the command of this process.
    """
    from gitllm_plugin import __version__

    write_atomically(folder / CONFIG, OmegaConf.to_yaml(OmegaConf.create(without_secrets(config))))
    versions = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "gitllm_plugin": __version__,
        **{package: _version(package) for package in PACKAGES},
        "source_revision": source_revision(),
        "command": sys.argv,
        **facts,
    }
    write_atomically(folder / "versions.json", json.dumps(versions, indent=2) + "\n")
    point_to(folder, link)

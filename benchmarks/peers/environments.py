"""A peer's own environment, in a folder of the user's: packages at pinned versions, a repository at a commit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.peers.measure import Place
from benchmarks.peers.registry import Peer
from gitllm_plugin.errors import ConfigError


def place_of(name: str, peer: Peer, folder: Path | None, source: Path | None) -> Place:
    """Find a peer's installation.

    Args:
        name: of the peer.
        peer: what it needs.
        folder: where :func:`set_up` put it.
        source: a checkout of its repository, in place of the one there.

    Raises:
        ConfigError: it is not there; says the command that makes it.
    """
    if peer.requirements is None and peer.source is None:
        return Place()
    if folder is None:
        raise ConfigError(f"{name} has an environment of its own: name the folder of it, --environments FOLDER")
    python = None if peer.requirements is None else folder / peer.requirements / "bin" / "python"
    checkout = None if peer.source is None else source or folder / f"{peer.requirements}-source"
    for needed in (python, checkout):
        if needed is not None and not needed.exists():
            raise ConfigError(
                f"{needed} is not there: python -m benchmarks peers {name} --setup --environments {folder}"
            )
    return Place(python, checkout)


def set_up(peer: Peer, folder: Path, source: Path | None) -> None:
    """Make the environment, and clone the repository where none is given.

    Raises:
        subprocess.CalledProcessError: a command failed, and has said why.
    """
    if peer.requirements is not None:
        target = folder / peer.requirements
        _call(sys.executable, "-m", "venv", str(target))
        _call(str(target / "bin" / "python"), "-m", "pip", "install", "-r", str(peer.requirements_file))
    if peer.source is not None and source is None:
        address, commit = peer.source
        checkout = folder / f"{peer.requirements}-source"
        if not checkout.exists():
            _call("git", "clone", address, str(checkout))
        _call("git", "-C", str(checkout), "checkout", commit)


def _call(*command: str) -> None:
    print("+", *command, flush=True)
    subprocess.run(command, check=True)

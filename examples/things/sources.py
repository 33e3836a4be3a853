"""Fetches packages of pictures from Debian and npm; none of them is installed or run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.easyvqa.folders import replaced_folder
from gitllm_plugin.common.files import scratch_folder


@dataclass(frozen=True)
class Source:
    """A package of pictures.

    Attributes:
        name: as its registry spells it; of npm's with the version that was tried.
        license: of the pictures.
        what: is in it.
        folder: the name below the cache.
    """

    name: str
    license: str
    what: str
    folder: str


@dataclass(frozen=True)
class Debian(Source):
    """A package of Debian and its relatives."""

    def fetch(self, folder: Path) -> None:
        """Download and unpack the package into ``folder``.

        Raises:
            OSError, subprocess.CalledProcessError: it cannot be had.
        """
        with scratch_folder(folder) as scratch:
            _run(["apt-get", "download", self.name], scratch)
            (package,) = scratch.glob("*.deb")
            _run(["dpkg-deb", "--extract", str(package), str(folder)], scratch)


@dataclass(frozen=True)
class Npm(Source):
    """A package of npm's registry."""

    def fetch(self, folder: Path) -> None:
        """As :meth:`Debian.fetch`."""
        with scratch_folder(folder) as scratch:
            _run(["npm", "pack", self.name, "--silent"], scratch)
            (package,) = scratch.glob("*.tgz")
            with tarfile.open(package) as archive:
                archive.extractall(folder, filter="data")


def _icons(prefix: str, version: str, license: str, what: str) -> Npm:
    return Npm(f"@iconify-json/{prefix}@{version}", license, what, prefix)


CLIPART = Debian("openclipart-svg", "public domain", "drawings of things with titles (25 MB)", "openclipart")
STAMPS = Debian(
    "tuxpaint-stamps-default", "GPL-2+ and public domain", "drawings and photographs with captions (161 MB)", "stamps"
)
EMOJI = (
    _icons("twemoji", "1.2.5", "CC-BY-4.0", "Twitter's emoji"),
    _icons("noto", "1.2.9", "Apache-2.0", "Google's emoji"),
    _icons("noto-v1", "1.2.5", "Apache-2.0", "Google's earlier emoji"),
    _icons("openmoji", "1.2.29", "CC-BY-SA-4.0", "OpenMoji's emoji"),
    _icons("fluent-emoji-flat", "1.2.6", "MIT", "Microsoft's flat emoji"),
    _icons("fxemoji", "1.2.2", "Apache-2.0", "Mozilla's emoji"),
    _icons("emojione", "1.2.3", "CC-BY-4.0", "EmojiOne's emoji"),
)
SOURCES: Sequence[Debian | Npm] = (*EMOJI, CLIPART, STAMPS)


def fetch_sources(cache: Path) -> list[str]:
    """Fetch what is not there yet; what cannot be had is left out, and told.

    Args:
        cache: gets a folder for each source, which is there whole or not at all.

    Returns:
        What is missing, a line each.
    """
    missing = []
    for source in SOURCES:
        folder = cache / source.folder
        if folder.is_dir():
            print(f"  {source.name}: there already", flush=True)
            continue
        print(f"  {source.name}: {source.what}, {source.license}", flush=True)
        try:
            with replaced_folder(folder) as partial:
                source.fetch(partial)
                licence = {"name": source.name, "license": source.license}
                (partial / "source.json").write_text(json.dumps(licence), encoding="utf-8")
        except (OSError, subprocess.SubprocessError, ValueError, tarfile.TarError) as error:
            missing.append(f"{source.name} ({source.what}) cannot be had and is left out: {_reason(error)}")
            print(f"  {missing[-1]}", file=sys.stderr, flush=True)
    return missing


def _run(command: Sequence[str], folder: Path) -> None:
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(f"there is no program {command[0]} on this machine")
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=600)


def _reason(error: Exception) -> str:
    said = getattr(error, "stderr", None) or str(error)
    return said.strip().splitlines()[-1] if said.strip() else type(error).__name__

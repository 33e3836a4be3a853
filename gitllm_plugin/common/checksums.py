"""Sums by which damaged files are known: CRC-32, which zip files have anyway and which costs less than reading.

They tell what disks, networks and copies do to a file; who means harm can write a file with a right sum.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gitllm_plugin.common.file_faults import fault_of_file
from gitllm_plugin.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK_BYTES = 2**22
_FOLDER = 0x10  # of a file's attributes, as DOS has them


def sum_of_weights(weights: Mapping[str, Tensor]) -> str:
    """Sum up names, formats, shapes and bytes of tensors on the CPU, in whatever order and file they are."""
    import torch  # sums of files are also compared where there is none

    found = 0
    for name in sorted(weights):
        value = weights[name].detach()
        found = zlib.crc32(f"{name}\0{value.dtype}\0{list(value.shape)}\0".encode(), found)
        # As bytes: numpy knows no bfloat16.
        found = zlib.crc32(value.contiguous().reshape(-1).view(torch.uint8).numpy().data, found)
    return f"{found:08x}"


def sum_of_file(path: Path) -> str:
    """Sum up a file's bytes."""
    found = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            found = zlib.crc32(chunk, found)
    return f"{found:08x}"


def damage_of_zip(path: Path) -> str | None:
    """Find the first entry of a zip file whose bytes are not those that were written, and say so; None: all are.

    All of it is read once; memory is that of a chunk. torch reads zip files and does not look.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entry = archive.testzip()
            # torch would read nothing of an entry that is called a folder, and leave its tensor as memory was.
            folders = [info.filename for info in archive.infolist() if info.file_size and info.external_attr & _FOLDER]
    except Exception as error:  # zipfile raises a different class for every way in which a file can be broken
        return str(error) or type(error).__name__
    if folders:
        return f"{folders[0]} is marked as a folder and has bytes"
    return None if entry is None else f"{entry} has not the bytes that were written"


def sums_of_files(folder: Path, patterns: Iterable[str]) -> dict[str, str]:
    """Sum up the files of a folder, at any depth, whose names fit: by their paths in it, with forward slashes."""
    files = {path for pattern in patterns for path in folder.rglob(pattern) if path.is_file()}
    return {path.relative_to(folder).as_posix(): sum_of_file(path) for path in sorted(files)}


def check_files(
    folder: Path, sums: Mapping[str, str], noted_in: Path, whole: Callable[[str], bool] = lambda name: True
) -> None:
    """Compare files with the sums that were noted when they were written.

    Args:
        folder: where they are.
        sums: as :func:`sums_of_files` gave them.
        noted_in: the file that holds the sums, for the message.
        whole: whether all bytes of a file are read; of others it is only seen whether they are there and not cut off.

    Raises:
        ConfigError: files are missing or have other bytes; all of them are named.
    """
    faults = []
    for name, expected in sums.items():
        path = folder / name
        # Which says more of what is cut off, empty or a pointer of git-lfs.
        if fault := fault_of_file(path):
            faults.append(f"{path} {fault}")
        elif whole(name) and (found := sum_of_file(path)) != expected:
            faults.append(f"{path} has not the bytes that were written (CRC-32 {found}, it was {expected})")
    if faults:
        raise ConfigError(
            "\n".join(faults) + f"\nCopy the folder again from where it was written. If you changed a file yourself, "
            f"take its line out of 'checksums' in {noted_in}"
        )

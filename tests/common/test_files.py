"""Files and folders that are there whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gitllm_plugin.common.files import link_or_copy

NOBODY = 65534


@pytest.fixture
def unprivileged_folder() -> Iterator[Path]:
    """A folder of the user that this process is, who is not root: root may write to everything."""
    folder = Path(tempfile.mkdtemp())
    is_root = os.geteuid() == 0
    if is_root:
        os.chown(folder, NOBODY, NOBODY)
        os.seteuid(NOBODY)
    yield folder
    if is_root:
        os.seteuid(0)
    shutil.rmtree(folder)


def test_a_write_protected_file_gets_a_second_name(unprivileged_folder):
    existing, name = unprivileged_folder / "step.pth", unprivileged_folder / "best.pth"
    existing.write_bytes(b"weights")
    existing.chmod(0o444)
    link_or_copy(existing, name)
    assert name.samefile(existing) and sorted(unprivileged_folder.iterdir()) == [name, existing]

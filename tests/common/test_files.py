"""Files and folders that are there whole or not at all."""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gitllm_plugin.common.files import link_or_copy, new_folder
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.runners.run_folder import point_to

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


def test_a_link_is_made_after_a_process_was_killed_before_its_renaming(tmp_path):
    (tmp_path / "run").mkdir()
    point_to(tmp_path / "run", "latest")
    (tmp_path / "latest").rename(_unfinished(tmp_path / "latest"))
    point_to(tmp_path / "run", "latest")
    assert (tmp_path / "latest").resolve() == tmp_path / "run"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "run"]


def test_a_folder_is_made_after_a_process_was_killed_before_its_renaming(tmp_path):
    _unfinished(tmp_path / "model").mkdir()
    (_unfinished(tmp_path / "model") / "half").touch()
    with new_folder(tmp_path / "model") as folder:
        (folder / "whole").touch()
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["model", "model/whole"]
    with pytest.raises(ConfigError, match="exists already"), new_folder(tmp_path / "model"):
        pass


def _unfinished(path: Path) -> Path:
    """Where this process writes what will be `path`."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.partial")

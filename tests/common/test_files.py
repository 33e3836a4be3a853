"""Files and folders that are there whole or not at all."""

import errno
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gitllm_plugin.common.files import atomic_path, link_or_copy, new_folder, write_atomically
from gitllm_plugin.common.processes import is_running
from gitllm_plugin.errors import ConfigError, StorageError
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


def test_what_killed_processes_left_goes_and_what_may_be_under_way_stays(tmp_path):
    with subprocess.Popen(["true"]) as gone:
        pass
    other, age = "elsewhere", time.time() - 2 * 24 * 3600
    host = socket.gethostname()
    left = [f".a.json.{host}.{gone.pid}.partial", f".b.{host}.{gone.pid}.partial", f".c.{other}.7.partial"]
    kept = [f".a.json.{host}.{os.getpid()}.partial", f".d.{other}.8.partial", ".notes", f"a.{host}.{gone.pid}.partial"]
    for name in [*left[1:], *kept]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").touch()
    (tmp_path / left[0]).touch()
    os.utime(tmp_path / left[2], (age, age))
    write_atomically(tmp_path / "new", b"new")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "new"])


def test_a_link_that_is_called_like_a_remainder_loses_nothing(tmp_path):
    with subprocess.Popen(["true"]) as gone:
        pass
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo").touch()
    (tmp_path / f".x.{socket.gethostname()}.{gone.pid}.partial").symlink_to(tmp_path / "mine")
    write_atomically(tmp_path / "new", b"new")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine", "new", "photo"]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux says whether a process has ended")
def test_a_process_that_nobody_asked_about_is_gone():
    ended = subprocess.Popen(["true"])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    os.kill(ended.pid, 0)  # the system still has it
    assert not is_running(ended.pid) and is_running(os.getpid())
    ended.wait()


def test_what_a_library_puts_beside_its_file_goes_with_it(tmp_path):
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "a.bin") as partial:
        partial.with_name(".tmp123").write_bytes(b"half")
        raise RuntimeError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("file/new", "File exists.* A file stands where a folder should be"),
        ("folder", "Is a directory.* A folder has that name"),
        ("x" * 300, "File name too long.* Choose a shorter name"),
        ("folder/" + "y" * 250, "File name too long.* Choose a shorter name"),
    ],
)
def test_places_that_cannot_be_written_are_named_with_what_to_do(tmp_path, place, message):
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(StorageError, match=f"{place} cannot be written: {message}"):
        write_atomically(tmp_path / place, b"new")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "full"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ENOENT])
def test_an_error_of_what_is_read_meanwhile_stays_what_it_is(tmp_path, number):
    with pytest.raises(OSError) as raised, atomic_path(tmp_path / "new"):
        raise OSError(number, os.strerror(number), "/a/source")
    assert not isinstance(raised.value, StorageError) and raised.value.filename == "/a/source"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_whoever_says_that_a_disk_is_full_the_file_is_named(tmp_path, error):
    with (
        pytest.raises(StorageError, match=r"new cannot be written: .* MB are free there\)\. .* Free some space"),
        new_folder(tmp_path / "new"),
    ):
        raise error
    assert not list(tmp_path.iterdir())


def _unfinished(path: Path) -> Path:
    """Where this process writes what will be `path`."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.partial")

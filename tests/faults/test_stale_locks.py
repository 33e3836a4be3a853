"""What a run leaves behind that was killed, or that another machine trained: it holds nobody off."""

import json
import os
import socket
import subprocess
import sys

import pytest

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.runners.run_lock import HOLDER, LOCK, give_back, hold
from tests.small_run import ENVIRONMENT

HOLD_AND_DIE = """
import os, signal, sys
from pathlib import Path
from gitllm_plugin.runners.run_lock import hold
hold(Path(sys.argv[1]))
os.kill(os.getpid(), signal.SIGKILL)
"""


def gone() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    ("pid", "host"),
    [
        (gone, socket.gethostname),  # killed
        (os.getppid, socket.gethostname),  # killed, and its number is another process's now
        (lambda: 1, socket.gethostname),  # the same, of another user
        (os.getpid, lambda: "another-machine"),
        (gone, lambda: "another-machine"),
        (lambda: 2**40, socket.gethostname),  # no number of a process
    ],
)
def test_a_note_about_nobody_holds_nobody_off(tmp_path, pid, host):
    (tmp_path / LOCK).touch()
    (tmp_path / HOLDER).write_text(json.dumps({"pid": pid(), "host": host(), "since": "2026-01-01 00:00:00"}))
    hold(tmp_path)
    assert json.loads((tmp_path / HOLDER).read_text())["pid"] == os.getpid()
    give_back(tmp_path)


def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path):
    for _ in range(3):
        died = subprocess.run([sys.executable, "-c", HOLD_AND_DIE, str(tmp_path)], env=ENVIRONMENT)
        assert died.returncode == -9 and (tmp_path / LOCK).exists() and (tmp_path / HOLDER).exists()
    hold(tmp_path)
    give_back(tmp_path)


@pytest.mark.parametrize("pid", [2**40, 10**30, -1, 0])
def test_a_note_with_a_strange_number_beside_a_live_holder_is_no_traceback(tmp_path, pid):
    code = HOLD_AND_DIE.replace("os.kill(os.getpid(), signal.SIGKILL)", "print(flush=True); sys.stdin.read()")
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    holder.stdout.readline()
    (tmp_path / HOLDER).write_text(json.dumps({"pid": pid, "host": socket.gethostname(), "since": ""}))
    with pytest.raises(ConfigError, match="is being trained by "):
        hold(tmp_path)
    holder.communicate()

"""A run's folder belongs to the process that trains it, for as long as that lives."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock
from tiny_run import build_runner

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.runners.run_lock import HOLDER, give_back, hold
from tests.small_run import ENVIRONMENT

SCRIPT = Path(__file__).with_name("tiny_run.py")
NO_EVALUATION = {"valid_splits": [], "test_splits": []}
HOLDING = """
import os, sys, time
from pathlib import Path
from gitllm_plugin.runners.run_lock import hold
hold(Path(sys.argv[1]))
if len(sys.argv) > 2 and os.fork() == 0:
    time.sleep(float(sys.argv[2]))
    os._exit(0)
print("holds", flush=True)
time.sleep(60)
"""


def holder_of(folder, *arguments) -> subprocess.Popen:
    """Another process that holds the folder, and its child, if seconds are given for one."""
    command = [sys.executable, "-c", HOLDING, str(folder), *map(str, arguments)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "holds\n"
    return process


def end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    process.stdout.close()


def test_another_process_is_named(tmp_path):
    process = holder_of(tmp_path)
    said = rf"{tmp_path} is being trained by process {process.pid} on {socket.gethostname()} since 20"
    with pytest.raises(ConfigError, match=said):
        hold(tmp_path)
    end(process)


def test_a_process_that_was_killed_holds_nothing(tmp_path):
    end(holder_of(tmp_path))
    assert (tmp_path / HOLDER).exists()  # stale
    hold(tmp_path)
    assert json.loads((tmp_path / HOLDER).read_text())["pid"] == os.getpid()
    give_back(tmp_path)
    assert not (tmp_path / HOLDER).exists()


def test_children_of_a_process_that_was_killed_are_waited_for(tmp_path):
    end(holder_of(tmp_path, 2))
    hold(tmp_path)
    give_back(tmp_path)


def test_the_process_itself_may_take_it_again(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    hold(tmp_path / "run")
    hold(Path("run"))
    give_back(tmp_path / "run")
    give_back(tmp_path / "run")
    end(holder_of(tmp_path / "run"))


@pytest.mark.parametrize("note", ["", "{}", "[]", '{"pid": "x", "host": 1, "since": 2}', '{"pid": 1}'])
def test_a_note_that_says_nothing(tmp_path, note):
    process = holder_of(tmp_path)
    (tmp_path / HOLDER).write_text(note)
    with pytest.raises(ConfigError, match="is being trained by another process; a second one"):
        hold(tmp_path)
    end(process)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, caplog, number):
    def acquire(self, *args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(FileLock, "acquire", acquire)
    hold(tmp_path)
    assert "start no second process that resumes this run" in caplog.text
    give_back(tmp_path)


def test_a_run_that_is_done_or_failed_gives_its_folder_back(tmp_path):
    run = build_runner(tmp_path, max_epoch=1, **NO_EVALUATION)
    refused = []
    train_epoch = run.train_epoch

    def held_epoch(epoch):
        with pytest.raises(ConfigError, match=f"is being trained by process {os.getpid()}"):
            subprocess_hold(run.output_dir)
        refused.append(epoch)
        return train_epoch(epoch)

    run.train_epoch = held_epoch
    run.train()
    assert refused == [0]
    subprocess_hold(run.output_dir)
    failed = build_runner(tmp_path, max_epoch=1, test_splits=["nowhere"], valid_splits=[])
    with pytest.raises(ConfigError, match="nowhere"):
        failed.train()
    subprocess_hold(failed.output_dir)


def subprocess_hold(folder) -> None:
    code = (
        "import sys; from pathlib import Path; from gitllm_plugin.runners.run_lock import hold; hold(Path(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], env=ENVIRONMENT, capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(done.stderr)


def start(folder, *settings, ranks: int = 1) -> subprocess.Popen:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    given = ["valid_splits=[]", "test_splits=[]", "tiny.size=64", "save_every_steps=2", *settings]
    command = [sys.executable, *launcher, str(SCRIPT), f"output_dir={folder}", *given]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize("value", ["auto", "folder", "file"])
def test_a_run_that_is_being_trained_is_not_resumed_and_a_new_one_may_start(tmp_path, value):
    done = build_runner(tmp_path, max_epoch=1, **NO_EVALUATION)
    done.train()
    process = holder_of(done.output_dir)
    path = {"folder": done.output_dir, "file": done.output_dir / "checkpoint_latest.pth"}.get(value, value)
    with pytest.raises(ConfigError, match=f"is being trained by process {process.pid}"):
        build_runner(tmp_path, max_epoch=2, resume_ckpt_path=str(path), **NO_EVALUATION)
    build_runner(tmp_path, max_epoch=1, **NO_EVALUATION).train()
    end(process)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_of_two_that_resume_one_run_the_second_is_refused(tmp_path, ranks):
    """And the first writes each of its steps once."""
    first = start(tmp_path, "tiny.seconds=0.5", ranks=ranks)  # longer than a process takes to start
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("2*/checkpoints/*.pth")) and time.monotonic() < deadline:
        time.sleep(0.05)
    second = start(tmp_path, "resume_ckpt_path=auto", ranks=ranks)
    said = second.communicate(timeout=120)[0]
    assert second.returncode != 0 and "is being trained by process" in said
    assert first.poll() is None
    first.send_signal(signal.SIGTERM)
    assert "Stopped by SIGTERM" in first.communicate(timeout=120)[0]
    (run,) = (folder for folder in tmp_path.glob("2*"))
    again = start(tmp_path, "resume_ckpt_path=auto", ranks=ranks)
    shown = again.communicate(timeout=120)[0]
    assert again.returncode == 0, shown
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(len(steps))) and len(steps) == 32 // ranks

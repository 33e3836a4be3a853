"""One run, one process: a run's folder is held while it is trained, so that nobody else writes into its files.

The lock is the system's, on a file that stays: it ends with the process, however that ends. Over NFS it holds between
machines where the server has locks, as it has unless it is told otherwise; where there are none the run says so.
"""

import atexit
import contextlib
import datetime
import json
import logging
import os
import socket
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gitllm_plugin.common.files import write_atomically
from gitllm_plugin.common.processes import is_running
from gitllm_plugin.errors import ConfigError

LOCK = "run.lock"
HOLDER = "running.json"
"""Which process trains, for messages; the lock alone says whether one does."""

_SECONDS_FOR_CHILDREN = 30.0
_held: dict[Path, FileLock] = {}


def hold(folder: Path) -> None:
    """Take a run's folder for this process, until it gives it back or ends; it may take it again.

    Raises:
        ConfigError: another process trains the run; the message says which one.
    """
    folder = folder.resolve()
    if folder in _held:
        return
    lock = FileLock(folder / LOCK, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _wait_for_children(lock, folder)
    except (OSError, NotImplementedError) as error:
        if isinstance(error, PermissionError) or not folder.is_dir():
            raise
        logging.warning("%s cannot be locked (%s): start no second process that resumes this run.", folder, error)
        return
    _held[folder] = lock
    content = {"pid": os.getpid(), "host": socket.gethostname(), "since": _now()}
    write_atomically(folder / HOLDER, json.dumps(content).encode(), durable=False)


def give_back(folder: Path) -> None:
    """Let others take a run's folder; nothing is done where this process does not hold it."""
    lock = _held.pop(folder.resolve(), None)
    if lock is not None:
        with contextlib.suppress(OSError):  # the folder may be gone
            (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


@atexit.register
def _give_back_all() -> None:
    for folder in list(_held):
        give_back(folder)


def _wait_for_children(lock: FileLock, folder: Path) -> None:
    """Wait where the process that held the folder is gone, and its workers, which inherit the lock, are just going."""
    deadline = time.monotonic() + _SECONDS_FOR_CHILDREN
    while _is_gone(holder := _holder_of(folder)) and time.monotonic() < deadline:
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=0.2)
            return
    who = f"process {holder['pid']} on {holder['host']} since {holder['since']}" if holder else "another process"
    raise ConfigError(
        f"{folder} is being trained by {who}; a second one would write into its files. Wait until it has ended or "
        "stop it, or leave run.resume_ckpt_path out to start a new run"
    )


def _holder_of(folder: Path) -> dict[str, Any] | None:
    try:
        content = json.loads((folder / HOLDER).read_text())
        return {"pid": int(content["pid"]), "host": str(content["host"]), "since": str(content["since"])}
    except (OSError, ValueError, KeyError, TypeError):  # not written yet
        return None


def _is_gone(holder: dict[str, Any] | None) -> bool:
    return holder is not None and holder["host"] == socket.gethostname() and not is_running(holder["pid"])


def _now() -> str:
    return datetime.datetime.now().isoformat(" ", "seconds")

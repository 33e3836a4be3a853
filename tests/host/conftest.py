"""Fixtures of the host's tests: fresh Python processes, in which packages can be made absent."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

# Makes top-level packages absent for a process, whether or not this machine has them.
HIDE = """
from importlib.machinery import PathFinder
_find = PathFinder.find_spec
PathFinder.find_spec = classmethod(
    lambda cls, name, path=None, target=None:
        None if name.partition(".")[0] in {hidden!r} else _find(name, path, target)
)
"""


@pytest.fixture(scope="session")
def run_python():
    """Runs code, or a command line, in a fresh Python and returns the completed process."""

    def run(code=None, *, args=(), hidden=(), env=None, cwd=None, timeout=240):
        command = [sys.executable, *args]
        if code is not None:
            command += ["-c", (HIDE.format(hidden=set(hidden)) if hidden else "") + code]
        paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("GITLLM_")},
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            **(env or {}),
        }
        return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=timeout)

    return run


@pytest.fixture(scope="session")
def host():
    """LAVIS, made importable in this process."""
    from gitllm_plugin.host.locate import prepare

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torchvision had to be repaired is tested elsewhere
        return prepare()

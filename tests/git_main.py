"""LAVIS's git main as host, where the environment names a checkout of it."""

import os
import subprocess
import sys
from pathlib import Path

CHECKOUT = os.environ.get("GITLLM_TEST_LAVIS_MAIN")
_REPOSITORY = Path(__file__).parents[1]


def run_with_git_main(file: str) -> None:
    """Run the fast tests of a file again, in a process that finds the checkout's library."""
    assert CHECKOUT
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([CHECKOUT, str(_REPOSITORY)])}
    environment.pop("GITLLM_TEST_LAVIS_MAIN")
    command = [sys.executable, "-m", "pytest", "-q", "-n0", str(Path(file))]
    finished = subprocess.run(command, cwd=_REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout

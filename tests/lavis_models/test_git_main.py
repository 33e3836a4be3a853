"""The same with LAVIS's git main, where a checkout of it is at hand."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = os.environ.get("GITLLM_TEST_LAVIS_MAIN", "")
REPOSITORY = Path(__file__).parents[2]
FILES = ("test_registered_models.py", "test_model_repairs.py")


@pytest.mark.slow
@pytest.mark.skipif(not CHECKOUT, reason="GITLLM_TEST_LAVIS_MAIN names no checkout of LAVIS's git main")
def test_git_mains_models():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([CHECKOUT, str(REPOSITORY)])}
    files = [str(Path(__file__).with_name(name)) for name in FILES]
    command = [sys.executable, "-m", "pytest", "-q", *files]
    finished = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout
    assert "blip2_vicuna_instruct" in (REPOSITORY / "docs" / "lavis.md").read_text(encoding="utf-8")

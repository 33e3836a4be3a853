"""Versions of transformers that have other mappings than this package knows."""

import os
import subprocess
import sys

import pytest

from tests.small_run import ENVIRONMENT

OTHER_VERSION = """
import sys
import gitllm_plugin
import {module} as mapping
print("imported", mapping.it_is_there, "torch" in sys.modules)
from gitllm_plugin.hf.registration import register
try:
    register()
except ImportError as error:
    print("said:", error)
"""


@pytest.mark.parametrize("mapping", ["configuration_auto", "modeling_auto", "processing_auto"])
def test_another_version_of_transformers_is_told_only_when_asked(mapping, tmp_path):
    folder = tmp_path / "transformers" / "models" / "auto"
    folder.mkdir(parents=True)
    for part in (folder, folder.parent, folder.parent.parent):
        (part / "__init__.py").touch()
    for name in ("configuration_auto", "modeling_auto", "processing_auto"):
        (folder / f"{name}.py").write_text("it_is_there = True\n")
    code = OTHER_VERSION.format(module=f"transformers.models.auto.{mapping}")
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ENVIRONMENT['PYTHONPATH']}"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert finished.returncode == 0 and finished.stderr == "", finished.stderr
    assert finished.stdout.startswith("imported True False\nsaid: cannot import name 'AutoConfig'")

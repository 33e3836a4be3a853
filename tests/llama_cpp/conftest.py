"""A tiny model beside its folder for llama.cpp, made once."""

import subprocess
import sys

import pytest
import torch

from gitllm_plugin.inference.pipeline import Pipeline
from tests.tiny_folder import write_tiny_folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """The model's pipeline, and its folder for llama.cpp."""
    place = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    write_tiny_folder(place / "model")
    # In a process of its own, where nothing has repaired a torchvision of another build than torch before.
    command = ["export", str(place / "model"), str(place / "gguf"), "--to", "llama.cpp"]
    ran = subprocess.run([sys.executable, "-m", "gitllm_plugin", *command], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return Pipeline.from_pretrained(place / "model", "float32", "cpu"), place / "gguf"

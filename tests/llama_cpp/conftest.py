"""A tiny model beside its folder for llama.cpp, made once."""

import pytest
import torch

from gitllm_plugin.cli.main import main
from gitllm_plugin.inference.pipeline import Pipeline
from tests.tiny_folder import write_tiny_folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """The model's pipeline, and its folder for llama.cpp."""
    place = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    write_tiny_folder(place / "model")
    assert main(["export", str(place / "model"), str(place / "gguf"), "--to", "llama.cpp"]) == 0
    return Pipeline.from_pretrained(place / "model", "float32", "cpu"), place / "gguf"

"""What the plug-in for vLLM says and refuses, where vLLM is not installed."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.hf.configuration import GitLLMConfig
from gitllm_plugin.modeling import LoraSettings
from gitllm_plugin.modeling.families import FAMILIES
from gitllm_plugin.modeling.tiny import tiny_language_model
from gitllm_plugin.vllm import plugin
from gitllm_plugin.vllm.checks import check_attention, check_folder, check_language_model
from tests.tiny_folder import write_tiny_folder

REPOSITORY = Path(__file__).parents[2]


def test_the_entry_point_is_there_and_cheap():
    (named,) = re.findall(
        r'"vllm.general_plugins": \["git_llm = ([\w.]+):(\w+)"\]', (REPOSITORY / "setup.py").read_text()
    )
    assert named == (plugin.__name__, plugin.register.__name__)
    script = f"import sys, {plugin.__name__}; print([n for n in ('torch', 'transformers', 'vllm') if n in sys.modules])"
    finished = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert finished.stdout == "[]\n", finished.stderr


def test_it_registers_what_a_folder_names(monkeypatch, tmp_path):
    registered = {}
    vllm = ModuleType("vllm")
    vllm.ModelRegistry = SimpleNamespace(register_model=registered.__setitem__)
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setattr(GitLLMConfig, "is_mm_prefix_lm", False, raising=False)
    for _ in range(2):
        plugin.register()
    folder = write_tiny_folder(tmp_path / "model")
    (architecture,) = json.loads((folder / "config.json").read_text())["architectures"]
    assert registered == {architecture: "gitllm_plugin.vllm.model:GitLLMForConditionalGeneration"}
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    assert config.is_mm_prefix_lm
    assert "is_mm_prefix_lm" not in config.to_dict()


def backend(name, has_prefix):
    return SimpleNamespace(get_name=lambda: name, supports_mm_prefix=lambda: has_prefix)


@pytest.mark.parametrize("name", ["CPU_ATTN", "FLASHINFER", "MINE"])
def test_attention_without_the_prefix_is_refused(name):
    check_attention([backend("TRITON_ATTN", True), backend("FLEX_ATTENTION", True)])
    with pytest.raises(ConfigError, match=f"{name} reads a picture causally"):
        check_attention([backend("TRITON_ATTN", True), backend(name, False)])


@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_positions_that_vllm_counts_otherwise_are_refused(kind):
    config = tiny_language_model(kind).config
    if FAMILIES[kind].positions_of(config) == "sequence":
        check_language_model(config)
        return
    with pytest.raises(ConfigError, match="counts positions over image and text"):
        check_language_model(config)


def test_folders_that_it_cannot_read_are_refused(tmp_path):
    check_folder(write_tiny_folder(tmp_path / "plain"))
    with pytest.raises(ConfigError, match="gitllm merge"):
        check_folder(write_tiny_folder(tmp_path / "lora", lora=LoraSettings()))
    with pytest.raises(ConfigError, match="in vLLM each sees itself alone"):
        check_folder(write_tiny_folder(tmp_path / "several", max_images=4))

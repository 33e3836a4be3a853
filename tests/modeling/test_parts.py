"""Frozen encoders and tiny models: each part by itself."""

import sys
from types import ModuleType

import pytest
import torch

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling import build, build_git_llm
from gitllm_plugin.modeling.families import FAMILIES
from gitllm_plugin.modeling.tiny import tiny_image_encoder, tiny_language_model


def test_a_frozen_encoder_stays_in_evaluation_mode_and_builds_no_graph():
    model, _ = build_git_llm("tiny:llama", "tiny:timm", trainable="proj")
    model.train()
    assert not model.image_encoder.tower.training and model.language_model.training
    assert not model.image_encoder(torch.randn(1, 3, 32, 32)).requires_grad


def test_a_decoder_of_no_family_has_to_be_tested_first(monkeypatch):
    monkeypatch.delitem(FAMILIES, "olmo2", raising=False)
    from transformers import Olmo2Config, Olmo2ForCausalLM

    from gitllm_plugin.modeling import GitLLM

    decoder = Olmo2ForCausalLM(
        Olmo2Config(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=16)
    )
    with pytest.raises(ConfigError, match="type 'olmo2' is in no family of the table .*build_git_llm tests whether"):
        GitLLM(tiny_image_encoder("clip"), decoder)


def test_tiny_models_are_the_same_each_time():
    one, other = tiny_language_model("llama"), tiny_language_model("llama")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_fused_kernels_are_refused_where_they_cannot_be():
    with pytest.raises(ConfigError, match="fused_kernels needs a CUDA GPU, and torch finds none; leave it out"):
        build_git_llm("tiny:llama", "tiny:clip", fused_kernels=True)


def test_fused_kernels_are_asked_of_liger_without_its_loss(monkeypatch):
    monkeypatch.setattr(build.torch.cuda, "is_available", lambda: True)
    model = tiny_language_model("llama")
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install liger-kernel"):
        build.use_fused_kernels(model)

    monkeypatch.setattr(build, "find_spec", lambda name: object())
    liger, asked = ModuleType("liger_kernel.transformers.monkey_patch"), []
    liger.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": None}
    liger._apply_liger_kernel_to_instance = lambda **arguments: asked.append(arguments)
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.monkey_patch", liger)
    build.use_fused_kernels(model)
    assert asked == [{"model": model, "cross_entropy": False, "fused_linear_cross_entropy": False}]
    with pytest.raises(ConfigError, match="Liger has none for a language model of type 'opt'.* It has them for llama"):
        build.use_fused_kernels(tiny_language_model("opt"))


@pytest.mark.gpu
def test_fused_kernels_change_no_logit():
    pytest.importorskip("liger_kernel")
    plain = tiny_language_model("llama").cuda()
    ids = torch.arange(3, 40, device="cuda")[None]
    with torch.no_grad():
        expected = plain(ids).logits
        build.use_fused_kernels(plain)
        torch.testing.assert_close(plain(ids).logits, expected, atol=1e-4, rtol=0)

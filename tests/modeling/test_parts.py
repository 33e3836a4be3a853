"""Frozen encoders and tiny models: each part by itself."""

import pytest
import torch

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling import build_git_llm
from gitllm_plugin.modeling.tiny import tiny_image_encoder, tiny_language_model


def test_a_frozen_encoder_stays_in_evaluation_mode_and_builds_no_graph():
    model, _ = build_git_llm("tiny:llama", "tiny:timm", trainable="proj")
    model.train()
    assert not model.image_encoder.tower.training and model.language_model.training
    assert not model.image_encoder(torch.randn(1, 3, 32, 32)).requires_grad


def test_a_decoder_of_no_family_has_to_be_tested_first():
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

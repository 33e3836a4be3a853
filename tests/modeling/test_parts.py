"""Tokens, frozen encoders and tiny models: each part by itself."""

import pytest
import torch

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling import TextEncoder, build_git_llm
from gitllm_plugin.modeling.tiny import tiny_image_encoder, tiny_language_model, tiny_tokenizer


def test_a_prompt_has_the_same_ids_in_training_and_at_inference():
    encoder = TextEncoder(tiny_tokenizer())
    prompt = "##Question: what color is the shape? ##Answer:"
    alone = encoder.prompts([prompt]).input_ids[0]
    trained = encoder.prompts_and_answers([prompt], ["red"])
    assert torch.equal(trained.input_ids[0, : len(alone)], alone)
    assert encoder.tokenizer.decode(trained.input_ids[0]) == f"{prompt} red</s>"


def test_labels_are_answer_and_end_token():
    tokenizer = tiny_tokenizer()
    batch = TextEncoder(tokenizer).prompts_and_answers(["what color? Answer:", "x"], ["a red circle", "no"])
    kept = [tokenizer.decode(row[row != -100]) for row in batch.labels]
    assert kept == [" a red circle</s>", " no</s>"]
    everything = TextEncoder(tokenizer, loss_on="all").prompts_and_answers(["x"], ["no"])
    assert torch.equal(everything.labels, everything.input_ids)


def test_end_token_of_a_closing_tokenizer_does_not_stand_before_the_answer():
    tokenizer = tiny_tokenizer()
    from tokenizers.processors import TemplateProcessing

    end = (tokenizer.eos_token, tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[end])
    ids = TextEncoder(tokenizer).prompts_and_answers(["Answer:"], ["no"]).input_ids[0]
    assert (ids == tokenizer.eos_token_id).sum() == 1


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

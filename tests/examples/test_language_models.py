"""The variants of the demonstration's language model, from a small one in its place."""

import pytest
import torch

from examples.easyvqa.errors import DemoError
from examples.easyvqa.language_models import FIRST_LAYERS, LAYERS, RANDOM, make_variants
from gitllm_plugin.modeling.tiny import tiny_tokenizer


def test_variants_are_cut_or_random_and_are_made_once(tmp_path, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=LAYERS + 1, num_attention_heads=2
    )
    whole = LlamaForCausalLM(config)
    whole.save_pretrained(tmp_path / "source")
    tiny_tokenizer().save_pretrained(tmp_path / "source")
    make_variants(tmp_path / "source", tmp_path)

    cut = AutoModelForCausalLM.from_pretrained(tmp_path / FIRST_LAYERS)
    assert len(cut.model.layers) == cut.config.num_hidden_layers == LAYERS
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in cut.state_dict().items())
    random = AutoModelForCausalLM.from_pretrained(tmp_path / RANDOM)
    assert random.config.num_hidden_layers == LAYERS + 1
    assert not torch.equal(random.lm_head.weight, whole.lm_head.weight)
    assert AutoTokenizer.from_pretrained(tmp_path / RANDOM)("a")["input_ids"]

    make_variants(tmp_path / "source", tmp_path)
    assert capsys.readouterr().out.count("already made") == 2


def test_without_the_language_model_the_command_that_makes_it_is_named(tmp_path):
    with pytest.raises(DemoError, match="make demo"):
        make_variants(tmp_path / "nothing", tmp_path)

"""What of a model is random still: after building, loading, training and adding LoRA."""

import pytest
import torch

from gitllm_plugin.config.model import BuildSettings, LoraSettings
from gitllm_plugin.modeling import GitLLM, build_git_llm, load_folder
from gitllm_plugin.modeling.build import build_from_folder


def build(**settings):
    return build_git_llm("tiny:llama", "tiny:clip", **settings)


@pytest.mark.parametrize(
    ("settings", "random"),
    [({}, {"proj"}), ({"lora": LoraSettings(rank=2)}, {"proj", "lora"}), ({"max_images": 3}, {"proj"})],
)
def test_a_built_model_is_random_in_what_it_adds(settings, random):
    assert build(trainable="proj", **settings)[0].untrained == random


def test_a_folder_brings_all_that_it_has(tmp_path):
    model, tokenizer = build(trainable="proj+lora", lora=LoraSettings(rank=2), max_images=2)
    model.save_pretrained(tmp_path / "lora", tokenizer=tokenizer)
    plain, tokenizer = build(trainable="proj")
    plain.save_pretrained(tmp_path / "plain", tokenizer=tokenizer)
    assert load_folder(tmp_path / "lora").model.untrained == set()
    assert GitLLM.from_pretrained(tmp_path / "plain").untrained == set()
    more, _ = build_from_folder(tmp_path / "plain", BuildSettings(lora=LoraSettings(rank=2)))
    assert more.untrained == {"lora"}


def test_training_makes_it_trained_and_looking_does_not():
    model, tokenizer = build(trainable="proj")
    ids = torch.tensor([tokenizer("one two three")["input_ids"]])
    model.eval()
    model(ids, pixel_values=torch.randn(1, 3, 32, 32), labels=ids)
    with torch.no_grad():
        model.train()(ids, pixel_values=torch.randn(1, 3, 32, 32), labels=ids)
    assert model.untrained == {"proj"}
    model.train()(ids, pixel_values=torch.randn(1, 3, 32, 32), labels=ids)
    assert model.untrained == set()

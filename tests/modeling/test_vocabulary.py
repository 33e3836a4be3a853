"""Tokenizers and models that do not fit each other, found when they meet, by every way to a model."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig

from gitllm_plugin.config.model import BuildSettings
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling import TextEncoder, build_git_llm, load_folder
from gitllm_plugin.modeling.tiny import tiny_language_model, tiny_tokenizer
from tests.modeling.batches import FAMILY_NAMES, pixels

QUICK = BuildSettings(trainable="proj", dtype="float32", self_test=False)
DTYPES = ["float32", "bfloat16"]


def write(folder: Path, family: str = "llama", special=(), words=(), drop=(), **config) -> str:
    """A model with its tokenizer, to which tokens are added or from whose settings names are taken out."""
    folder.mkdir(exist_ok=True)
    model = tiny_language_model(family)
    for name, value in config.items():
        setattr(model.config, name, value)
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(list(words))
    for role, token in dict(special).items():
        tokenizer.add_special_tokens({role: token})
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    for name in drop:
        settings.pop(name, None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(folder)


def loss(model, tokenizer) -> torch.Tensor:
    text = TextEncoder(tokenizer).prompts_and_answers(["red", "a blue circle <PAD> [PAD]"], ["yes", "no"])
    return model(text.input_ids, text.attention_mask, pixels(2), labels=text.labels).loss


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("family", "pad"), [("llama", "[PAD]"), ("gpt_neox", "<PAD>"), ("qwen2", "<|pad|>")])
def test_padding_without_an_embedding_is_the_end_token(family, pad, dtype, tmp_path):
    plain = write(tmp_path / "plain", family)
    expected = loss(*build_git_llm(plain, "tiny:clip", QUICK, dtype=dtype))
    added = write(tmp_path / "added", family, {"pad_token": pad})
    with pytest.warns(UserWarning, match="the padding token .* has no embedding in a model of 381"):
        model, tokenizer = build_git_llm(added, "tiny:clip", QUICK, dtype=dtype)
    # The same projection, which is drawn anew.
    model.projection.load_state_dict(build_git_llm(plain, "tiny:clip", QUICK, dtype=dtype)[0].projection.state_dict())
    assert tokenizer.pad_token == tokenizer.eos_token == "</s>"
    assert max(tokenizer.get_vocab().values()) < 381
    assert loss(model, tokenizer).isfinite() and expected.isfinite()
    # What is written then fits without a word.
    model.save_pretrained(tmp_path / "saved", tokenizer=tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = load_folder(tmp_path / "saved", dtype, self_test=False)
    assert torch.equal(loss(again.model, again.tokenizer), loss(model, tokenizer))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"words": ["<loc_0>", "<loc_1>"]}, r"'<loc_0>' \(id 381\), '<loc_1>' \(id 382\)"),
        ({"words": [f"w{n}" for n in range(9)]}, "'w4' .id 385., and 4 more"),
        ({"special": {"eos_token": "<|im_end|>"}}, r"'<\|im_end\|>' \(id 381\)"),
        ({"special": {"pad_token": "[PAD]", "bos_token": "[BOS]"}}, r"'\[PAD\]' .id 381., '\[BOS\]' .id 382."),
        ({"special": {"additional_special_tokens": ["<image>"]}}, "'<image>' .id 381."),
    ],
)
@pytest.mark.parametrize("way", ["built", "folder"])
def test_tokens_without_an_embedding_are_named(way, changes, named, tmp_path):
    if way == "built":
        name = write(tmp_path / "model", **changes)
        with pytest.raises(ConfigError, match=f"has embeddings for 381; there is none for .*{named}.*resize_token_emb"):
            build_git_llm(name, "tiny:clip", QUICK)
        return
    model, _ = build_git_llm("tiny:llama", "tiny:clip", QUICK)
    other = AutoTokenizer.from_pretrained(write(tmp_path / "other", **changes))
    model.save_pretrained(tmp_path / "saved", tokenizer=other)
    with pytest.raises(ConfigError, match=f"has embeddings for 381; there is none for .*{named}"):
        load_folder(tmp_path / "saved", self_test=False)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_tokenizer_that_fits_is_taken_without_a_word(family, tmp_path):
    name = write(tmp_path / "model", family)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, tokenizer = build_git_llm(name, "tiny:clip", QUICK)
    assert tokenizer.eos_token_id == 2 and tokenizer.pad_token_id == 0


def test_more_embeddings_than_tokens_and_tokens_added_within_are_fine(tmp_path):
    name = write(tmp_path / "model", words=["<one>"])
    model = tiny_language_model("llama")
    model.resize_token_embeddings(384)
    model.save_pretrained(name)
    _, tokenizer = build_git_llm(name, "tiny:clip", QUICK)
    assert tokenizer("<one>").input_ids == [381]


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "mpt"])
def test_no_end_token_anywhere_is_told(family, tmp_path):
    drop = ("eos_token", "pad_token")
    name = write(tmp_path / "model", family, drop=drop, eos_token_id=None, pad_token_id=None, bos_token_id=None)
    if AutoTokenizer.from_pretrained(name).eos_token is not None:
        pytest.skip("transformers gives such a tokenizer an end token of its own")
    with pytest.raises(ConfigError, match="has no end token .eos_token., and the model's configurations name none"):
        build_git_llm(name, "tiny:clip", QUICK)


@pytest.mark.parametrize("ends", [2, [2, 0], [380, 2]])
@pytest.mark.parametrize("where", ["generation_config.json", "config.json"])
def test_an_end_token_of_the_model_is_taken(where, ends, tmp_path):
    name = write(tmp_path / "model", "mpt", drop=("eos_token",), eos_token_id=None)
    if where == "config.json":
        path = tmp_path / "model" / where
        path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": ends}))
        (tmp_path / "model" / "generation_config.json").unlink()
    else:
        GenerationConfig(eos_token_id=ends).save_pretrained(name)
    _, tokenizer = build_git_llm(name, "tiny:clip", QUICK)
    assert tokenizer.eos_token_id == (ends if isinstance(ends, int) else ends[0])


def test_an_end_token_that_the_tokenizer_does_not_have_is_none(tmp_path):
    name = write(tmp_path / "model", "mpt", drop=("eos_token",), eos_token_id=9999)
    with pytest.raises(ConfigError, match="has no end token"):
        build_git_llm(name, "tiny:clip", QUICK)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"eos_token_id": 7}, r"the end token is 2 in the tokenizer and \[7\] in the model"),
        ({"eos_token_id": [7, 8]}, r"and \[7, 8\] in the model"),
        ({"bos_token_id": 5}, "the first token .bos. is 1 in the tokenizer and 5 in the model"),
    ],
)
def test_other_ids_in_the_configuration_are_told(config, said, tmp_path):
    with pytest.warns(UserWarning, match=said):
        build_git_llm(write(tmp_path / "model", **config), "tiny:clip", QUICK)


def test_a_folder_without_a_tokenizer_is_no_folder_with_an_empty_one(tmp_path):
    tiny_language_model("llama").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="tokenizer"):
        build_git_llm(str(tmp_path), "tiny:clip", QUICK)


@pytest.mark.parametrize("part", ["config.json", "tokenizer_config.json"])
def test_code_beside_a_model_is_never_run(part, tmp_path):
    name = write(tmp_path / "model")
    path = tmp_path / "model" / part
    said = {
        "config.json": {"model_type": "ours", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}},
        "tokenizer_config.json": {"tokenizer_class": "Ours", "auto_map": {"AutoTokenizer": ["code.T", None]}},
    }[part]
    path.write_text(json.dumps({**json.loads(path.read_text()), **said}))
    (tmp_path / "model" / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    with pytest.raises(ConfigError, match="asks for code of its own"):
        build_git_llm(name, "tiny:clip", QUICK)
    assert not (tmp_path / "ran").exists()


def test_code_beside_an_image_encoder_is_never_run(tmp_path):
    said = {"model_type": "seer", "auto_map": {"AutoConfig": "code.C", "AutoModel": "code.M"}}
    (tmp_path / "config.json").write_text(json.dumps(said))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    with pytest.raises(ConfigError, match="image encoder .* asks for code of its own"):
        build_git_llm("tiny:llama", str(tmp_path), QUICK)
    assert not (tmp_path / "ran").exists()


def test_an_adapter_is_no_language_model(tmp_path):
    name = write(tmp_path / "model")
    (tmp_path / "model" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(ConfigError, match="is an adapter of PEFT .* merge it into that model"):
        build_git_llm(name, "tiny:clip", QUICK)

"""Conversions between folders: published checkpoints to ours, adapters to merged models."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling import GitLLM, LoraSettings, build_git_llm, load_published
from gitllm_plugin.modeling.build import load_folder, merge_folder
from gitllm_plugin.modeling.folder import BASES
from gitllm_plugin.modeling.lora import merge_lora
from gitllm_plugin.modeling.pretrained import DTYPES
from gitllm_plugin.modeling.published import convert_published
from gitllm_plugin.modeling.tiny import tiny_tokenizer
from tests.modeling.test_folder import logits, trained_model

PUBLISHED = Path(__file__).parents[1] / "data" / "published"


def small_tokenizer():
    """One of as few words as the published checkpoints here have embeddings for."""
    words = {word: number for number, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", "red", "blue"])}
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="<unk>")), **special)


def make_source(folder, name, form):
    """A published checkpoint as people have it: one file or shards, safetensors or .bin, its tokenizer beside it."""
    folder.mkdir()
    shutil.copyfile(PUBLISHED / name / "config.json", folder / "config.json")
    weights = load_file(PUBLISHED / name / "weights.safetensors")
    names = sorted(weights)
    halves = [names[: len(names) // 2], names[len(names) // 2 :]] if "shards" in form else [names]
    for number, part in enumerate(halves, start=1):
        stem = f"-{number:05}-of-{len(halves):05}" if len(halves) > 1 else ""
        tensors = {key: weights[key] for key in part}
        if "bin" in form:
            torch.save(tensors, folder / f"pytorch_model{stem}.bin")
        else:
            save_file(tensors, folder / f"model{stem}.safetensors")
    small_tokenizer().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "CLIPImageProcessor"}')


@pytest.mark.parametrize("form", ["safetensors", "safetensors shards", "bin", "bin shards"])
@pytest.mark.parametrize("name", ["opt_video", "mpt"])
def test_a_published_folder_becomes_one_of_ours(name, form, tmp_path):
    make_source(tmp_path / "published", name, form)
    convert_published(tmp_path / "published", tmp_path / "ours")
    loaded = load_folder(tmp_path / "ours", dtype="float32")
    config = json.loads((PUBLISHED / name / "config.json").read_text())
    expected = load_published(config, load_file(PUBLISHED / name / "weights.safetensors"))
    given = load_file(PUBLISHED / name / "forward.safetensors")
    inputs = [given[f"rightpad/in/{key}"] for key in ("input_ids", "attention_mask", "pixel_values")]
    with torch.no_grad():
        assert torch.equal(loaded.model(*inputs).logits, expected(*inputs).logits)
    assert loaded.tokenizer("red").input_ids == small_tokenizer()("red").input_ids == [4]
    assert loaded.image_processor == {"image_processor_type": "CLIPImageProcessor"}


def test_a_checkpoint_that_holds_code_is_refused_and_does_not_run(tmp_path):
    class Code:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    make_source(tmp_path / "published", "opt", "bin")
    torch.save({"weight": Code()}, tmp_path / "published" / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="pytorch_model.bin cannot be read as plain weights"):
        convert_published(tmp_path / "published", tmp_path / "ours")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "ours").exists()


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="it has no config.json"):
        convert_published(tmp_path, tmp_path / "ours")
    shutil.copyfile(PUBLISHED / "opt" / "config.json", tmp_path / "config.json")
    with pytest.raises(ConfigError, match=r"has neither model.*safetensors nor pytorch_model"):
        convert_published(tmp_path, tmp_path / "ours")


def test_merging_a_folder_keeps_answers_tokenizer_and_settings(tmp_path):
    model, tokenizer = trained_model()
    model.save_pretrained(tmp_path / "adapter", tokenizer=tokenizer, settings={"prompt": "article"})
    merge_folder(tmp_path / "adapter", tmp_path / "merged")
    merged = load_folder(tmp_path / "merged", dtype="float32")
    torch.testing.assert_close(logits(merged.model), logits(model), atol=1e-4, rtol=0)
    assert merged.settings == {"prompt": "article"}
    assert merged.tokenizer("red").input_ids == tokenizer("red").input_ids
    assert not (tmp_path / "merged" / "adapter").exists()
    with pytest.raises(ConfigError, match="merged has no adapter to merge"):
        merge_folder(tmp_path / "merged", tmp_path / "again")


@pytest.mark.parametrize("base", ["float32", "bfloat16"])
@pytest.mark.parametrize("asked", [None, "float32", "bfloat16"])
def test_merged_weights_are_sums_in_float32_rounded_once(base, asked, tmp_path):
    """Unless a dtype is asked for, every weight keeps its own: a head that was trained stays float32."""
    model, tokenizer = build_git_llm(
        "tiny:llama", "tiny:clip", lora=LoraSettings(dropout=0.0), trainable="proj+lora+head", dtype=base
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "lm_head" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    model.save_pretrained(tmp_path / "adapter", tokenizer=tokenizer)
    merge_folder(tmp_path / "adapter", tmp_path / "merged", dtype=asked)
    merge_lora(model.float().language_model)
    files = {part: load_file(tmp_path / "merged" / part / "model.safetensors") for part in BASES}
    for weights in files.values():
        dtypes = {name: DTYPES[asked or ("float32" if name == "lm_head.weight" else base)] for name in weights}
        assert {name: value.dtype for name, value in weights.items()} == dtypes
    for name, value in files["language_model"].items():
        wanted = model.language_model.get_parameter(name).to(value.dtype)
        torch.testing.assert_close(value, wanted, atol=0, rtol=0, msg=name)


@pytest.mark.parametrize(
    "base, asked, trained, held",
    [
        ("bfloat16", None, "proj+lora", "bfloat16"),
        ("bfloat16", "bfloat16", "proj+lora", "bfloat16"),
        ("float16", "float16", "proj+lora", "float16"),
        ("bfloat16", "float16", "proj+lora", "float32"),
        ("bfloat16", None, "proj+lora+head", "float32"),
        ("float32", "bfloat16", "proj+lora", "float32"),
    ],
)
def test_a_merge_holds_the_model_as_it_is_stored_where_that_is_exact(base, asked, trained, held, tmp_path, monkeypatch):
    settings = {"lora": LoraSettings(dropout=0.0), "trainable": trained, "dtype": base}
    model, tokenizer = build_git_llm("tiny:llama", "tiny:clip", **settings)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or (parameter.requires_grad and "lm_head" in name):
            torch.nn.init.normal_(parameter, std=0.01)
    model.save_pretrained(tmp_path / "adapter", tokenizer=tokenizer)
    dtypes = []

    def load(source, dtype):
        dtypes.append(dtype)
        return load_folder(source, dtype)

    monkeypatch.setattr("gitllm_plugin.modeling.build.load_folder", load)
    merge_folder(tmp_path / "adapter", tmp_path / "merged", asked)
    assert dtypes == [held]
    # The same file as when all is held in float32.
    monkeypatch.setattr("gitllm_plugin.modeling.build.only_dtype", lambda folder: None)
    merge_folder(tmp_path / "adapter", tmp_path / "in_float32", asked)
    assert dtypes[1] == "float32"
    for part in BASES:
        one, other = (load_file(tmp_path / name / part / "model.safetensors") for name in ("merged", "in_float32"))
        assert one.keys() == other.keys()
        for name, value in one.items():
            torch.testing.assert_close(value, other[name], atol=0, rtol=0, msg=name)


_LOAD = """
import resource, sys, torch
from gitllm_plugin.modeling import build_git_llm, LoraSettings
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
before = peak()
model, _ = build_git_llm(sys.argv[1], "tiny:clip", lora=LoraSettings(dropout=0.0), dtype="float32", self_test=False)
print("loaded", peak() - before)
ids = torch.randint(5, 50000, (2, 24))
model.train()
output = model(ids, None, torch.randn(2, 3, 32, 32), ids, logits="none")
output.loss.backward()
torch.optim.AdamW([p for p in model.parameters() if p.requires_grad]).step()
model.eval().generate(ids, None, torch.randn(2, 3, 32, 32), max_new_tokens=4)
print("peak", peak())
"""


@pytest.mark.parametrize("shape", [pytest.param("opt-350m", marks=pytest.mark.slow), "llama of that size"])
def test_a_model_of_real_size_loads_once_trains_and_generates_within_6_gib(shape, tmp_path):
    """Random weights in OPT-350m's shape, and in a LLaMA's of the same width, depth and vocabulary: 1.3 and 1.9 GB."""
    from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

    sizes = {"vocab_size": 50272, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
    if shape == "opt-350m":
        config = OPTConfig(**sizes, ffn_dim=4096, word_embed_proj_dim=512, do_layer_norm_before=False)
        decoder = OPTForCausalLM(config)
    else:
        decoder = LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=4096))
    gibibytes = 4 * sum(parameter.numel() for parameter in decoder.parameters()) / 2**30
    decoder.save_pretrained(tmp_path)
    del decoder
    tiny_tokenizer().save_pretrained(tmp_path)
    command = [sys.executable, "-W", "ignore", "-c", _LOAD, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    figures = {line.split()[0]: float(line.split()[1]) for line in ran.stdout.splitlines()}
    assert figures["loaded"] < 1.5 * gibibytes  # never two copies, the file's pages included
    assert figures["peak"] < 6


def test_a_folder_without_weights_in_it_is_not_taken_for_a_model(tmp_path):
    with pytest.raises(ConfigError, match="is not a folder of a GIT-LLM"):
        GitLLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("part", [0.2, 0.5, 0.8])
def test_a_flipped_bit_of_a_published_weight_is_seen(tmp_path, part):
    make_source(tmp_path / "published", "opt", "bin")
    path = tmp_path / "published" / "pytorch_model.bin"
    data = bytearray(path.read_bytes())
    data[int(part * len(data))] ^= 4
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"pytorch_model\.bin is damaged: .* has not the bytes that were written"):
        convert_published(tmp_path / "published", tmp_path / "ours")

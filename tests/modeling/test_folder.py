"""Folders of a model: written, read again, and read by transformers and PEFT alone."""

import json
import os
import shutil
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling import GitLLM, LoraSettings, build_git_llm, load_folder, set_trainable
from gitllm_plugin.modeling import adapter as adapter_module
from gitllm_plugin.modeling.lora import merge_lora
from gitllm_plugin.modeling.tiny import IMAGE_ENCODERS, tiny_image_encoder, tiny_language_model, tiny_tokenizer
from tests.modeling.batches import FAMILY_NAMES, pixels

IDS = torch.arange(3, 3 + 2 * 9).view(2, 9)


def trained_model(language_model="tiny:llama", image_encoder="tiny:clip", **settings):
    """A model whose projection and LoRA are not what they start as."""
    settings = {"lora": LoraSettings(dropout=0.0), "dtype": "float32", **settings}
    model, tokenizer = build_git_llm(language_model, image_encoder, **settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or name.startswith(("projection.1", "temporal")):
                parameter.normal_(std=0.1)
    return model, tokenizer


@torch.no_grad()
def logits(model, frames=None):
    return model(IDS, None, pixels(2, frames)).logits


@pytest.fixture
def base(tmp_path):
    """Pretrained parts in folders, as a hub has them."""
    language_model, image_encoder = tmp_path / "llm", tmp_path / "clip"
    tiny_language_model("llama").save_pretrained(language_model)
    tiny_tokenizer().save_pretrained(language_model)
    tiny_image_encoder("clip").tower.save_pretrained(image_encoder)
    return str(language_model), str(image_encoder)


def test_all_files_follow_the_umask(tmp_path):
    model, tokenizer = trained_model()
    before = os.umask(0o027)
    try:
        model.save_pretrained(tmp_path / "saved", tokenizer=tokenizer)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "saved").rglob("*") if path.is_file()}
    assert {"projection.safetensors", "adapter_model.safetensors", "model.safetensors", "git_llm.json"} <= modes.keys()
    assert set(modes.values()) == {0o640}, modes


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_folder_gives_the_model_back(family, tmp_path):
    model, tokenizer = trained_model(f"tiny:{family}")
    processor = {"image_processor_type": "CLIPImageProcessor", "size": {"height": 32, "width": 32}}
    model.save_pretrained(
        tmp_path / "saved", tokenizer=tokenizer, image_processor=processor, settings={"prompt": "article"}
    )
    loaded = load_folder(tmp_path / "saved", dtype="float32")
    assert torch.equal(logits(loaded.model), logits(model))
    assert loaded.settings == {"prompt": "article"} and loaded.image_processor == processor
    assert loaded.tokenizer("what color?").input_ids == tokenizer("what color?").input_ids
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in loaded.model.named_parameters() if parameter.requires_grad} == trained


@pytest.mark.parametrize("kind", IMAGE_ENCODERS)
def test_every_image_encoder_comes_back(kind, tmp_path):
    layer = -1 if kind == "timm" else -2
    model, _ = trained_model(image_encoder=f"tiny:{kind}", vision_layer=layer, max_images=2)
    model.save_pretrained(tmp_path / "saved")
    loaded = GitLLM.from_pretrained(tmp_path / "saved", dtype="float32")
    assert torch.equal(logits(loaded, frames=2), logits(model, frames=2))
    assert loaded.image_encoder.layer == layer
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(GitLLM.from_pretrained(tmp_path / "again", dtype="float32")), logits(model))


def test_parts_are_plain_models_of_transformers_and_peft(tmp_path):
    from peft import PeftModel  # not before torchvision was repaired

    model, tokenizer = trained_model()
    model.save_pretrained(tmp_path / "saved", tokenizer=tokenizer)
    decoder = AutoModelForCausalLM.from_pretrained(tmp_path / "saved" / "language_model").eval()
    assert AutoTokenizer.from_pretrained(tmp_path / "saved" / "language_model")
    with_lora = PeftModel.from_pretrained(decoder, str(tmp_path / "saved" / "adapter"))
    with torch.no_grad():
        expected = model.language_model(input_ids=IDS).logits
        torch.testing.assert_close(with_lora(input_ids=IDS).logits, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(with_lora.merge_and_unload()(input_ids=IDS).logits, expected, atol=1e-4, rtol=0)


def test_a_merged_model_is_saved_without_an_adapter(tmp_path):
    model, _ = trained_model()
    before = logits(model)
    merge_lora(model.language_model)
    model.save_pretrained(tmp_path / "merged")
    assert not (tmp_path / "merged" / "adapter").exists()
    loaded = GitLLM.from_pretrained(tmp_path / "merged", dtype="float32")
    torch.testing.assert_close(logits(loaded), before, atol=1e-4, rtol=0)


def test_without_base_the_parts_are_named_and_not_written(base, tmp_path):
    model, tokenizer = trained_model(*base)
    model.save_pretrained(tmp_path / "small", with_base=False)
    written = sorted(path.name for path in (tmp_path / "small").iterdir())
    assert written == ["adapter", "config.json", "git_llm.json", "projection.safetensors"]
    loaded = load_folder(tmp_path / "small", dtype="float32")
    assert torch.equal(logits(loaded.model), logits(model))
    assert loaded.tokenizer("red").input_ids == tokenizer("red").input_ids
    loaded.model.save_pretrained(tmp_path / "again", with_base=False)
    assert torch.equal(logits(GitLLM.from_pretrained(tmp_path / "again", dtype="float32")), logits(model))


def test_a_trained_part_cannot_be_left_out(base, tmp_path):
    model, _ = trained_model(*base)
    set_trainable(model, "proj+lora+vit")
    with pytest.raises(ConfigError, match="the image_encoder was trained .*save the base too"):
        model.save_pretrained(tmp_path / "small", with_base=False)
    model.sources.clear()
    with pytest.raises(ConfigError, match="was not loaded by a name"):
        model.save_pretrained(tmp_path / "small", with_base=False)
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize("other", ["same shape", "other shape"])
def test_an_adapter_for_another_base_is_refused(base, other, tmp_path):
    model, _ = trained_model(*base)
    model.save_pretrained(tmp_path / "small", with_base=False)
    shutil.rmtree(base[0])
    if other == "same shape":
        tiny_language_model("llama", seed=1).save_pretrained(base[0])
    else:
        tiny_language_model("qwen2").save_pretrained(base[0])
    tiny_tokenizer().save_pretrained(base[0])
    with pytest.raises(ConfigError, match="was trained on another language model"):
        GitLLM.from_pretrained(tmp_path / "small")


def test_places_of_the_fingerprint_are_within_embeddings_of_any_size():
    for size in (40, 28_311_552, 2**31 + 1):  # the second is SmolLM2-135M's
        places = adapter_module._spread_places(size)
        assert places[0] == 0 and places[-1] == size - 1 and len(set(places)) == 32


def test_number_formats_of_the_base_do_not_make_it_another(base, tmp_path):
    model, _ = trained_model(*base)
    model.save_pretrained(tmp_path / "small", with_base=False)
    assert GitLLM.from_pretrained(tmp_path / "small", dtype="bfloat16")
    assert GitLLM.from_pretrained(tmp_path / "small", dtype="float16")


def without_checksums(folder) -> None:
    """Files may be changed then."""
    description = json.loads((folder / "git_llm.json").read_text())
    del description["checksums"]
    (folder / "git_llm.json").write_text(json.dumps(description))


def test_what_does_not_fit_is_named(tmp_path):
    model, _ = trained_model()
    folder = tmp_path / "saved"
    model.save_pretrained(folder)
    with pytest.raises(ConfigError, match="exists already"):
        model.save_pretrained(folder)
    with pytest.raises(ConfigError, match=r"is not a folder of a GIT-LLM: it has no git_llm.json"):
        load_folder(tmp_path)
    without_checksums(folder)
    state = load_file(folder / "projection.safetensors")
    save_file({**state, "projection.9.weight": torch.zeros(1)}, folder / "projection.safetensors")
    with pytest.raises(ConfigError, match="not in the model: projection.9.weight"):
        load_folder(folder)
    description = json.loads((folder / "git_llm.json").read_text())
    (folder / "git_llm.json").write_text(json.dumps({**description, "format": 2}))
    with pytest.raises(ConfigError, match="has format 2; this version reads format 1"):
        load_folder(folder)


def test_an_error_while_writing_leaves_nothing(tmp_path):
    model, _ = trained_model()
    with pytest.raises(OSError, match="No such file"):
        model.save_pretrained(tmp_path / "saved", tokenizer=[tmp_path / "tokenizer.json"])
    assert list(tmp_path.iterdir()) == []


def test_lora_is_not_rounded_to_the_dtype_of_the_rest(tmp_path):
    model, tokenizer = build_git_llm("tiny:llama", "tiny:clip", lora=LoraSettings(dropout=0.0), dtype="bfloat16")
    trained = {name: value for name, value in model.named_parameters() if ".lora_" in name}
    for parameter in trained.values():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "model", tokenizer=tokenizer)
    loaded = dict(load_folder(tmp_path / "model", dtype="bfloat16").model.named_parameters())
    assert all(torch.equal(loaded[name], value) for name, value in trained.items())

"""LoRA: which layers it reaches, its forms, merging."""

import contextlib

import pytest
import torch

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling import LoraSettings, build_git_llm
from gitllm_plugin.modeling.families import FAMILIES
from gitllm_plugin.modeling.lora import lora_merged, merge_lora
from gitllm_plugin.modeling.pretrained import DTYPES
from tests.modeling.batches import pixels

IDS = torch.arange(3, 3 + 2 * 9).view(2, 9)
# What is fused, written out once more; of other families the names they give must be names they have.
QKV = {
    "falcon": {"query_key_value"},
    "gpt2": {"c_attn"},
    "gpt_neox": {"query_key_value"},
    "llama": {"q_proj", "k_proj", "v_proj"},
    "mpt": {"Wqkv"},
    "opt": {"q_proj", "k_proj", "v_proj"},
    "phi3": {"qkv_proj"},
}


def build(family, **lora):
    model, _ = build_git_llm(
        f"tiny:{family}", "tiny:clip", lora=LoraSettings(**{"dropout": 0.0, **lora}), dtype="float32"
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model


def adapted(model):
    return {name.split(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name}


def leaves(model):
    return {name.rsplit(".", 1)[1] for name in adapted(model)}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_lora_reaches_queries_keys_and_values_of_the_language_model_only(family):
    model = build(family)
    assert leaves(model) == QKV.get(family, set(FAMILIES[family].lora_targets))
    assert all(name.startswith("language_model.") for name in adapted(model))
    layers = model.language_model.config.num_hidden_layers
    assert len(adapted(model)) == layers * len(leaves(model))


def test_all_linear_leaves_the_head_out():
    assert leaves(build("llama", targets=("all-linear",))) == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    assert leaves(build("gpt2", targets=("qkv", "c_fc"))) == {"c_attn", "c_fc"}
    assert leaves(build("gpt2", targets="c_fc")) == {"c_fc"}
    assert leaves(build("llama", targets="all-linear")) == leaves(build("llama", targets=("all-linear",)))


def test_targets_that_match_nothing_say_what_there_is():
    with pytest.raises(
        ConfigError,
        match="'q_porj' matches no layer of MptForCausalLM; its linear layers are Wqkv, .*'qkv' stands for Wqkv",
    ):
        build("mpt", targets=("q_porj",))


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": 0}, {"dropout": 1.0}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"lora.{next(iter(wrong))} is"):
        LoraSettings(**wrong)


def test_rslora_scales_by_the_root_of_the_rank():
    plain, stable = build("llama", rank=4, alpha=8), build("llama", rank=4, alpha=8, rslora=True)
    layer = "language_model.model.layers.0.self_attn.q_proj"
    assert plain.get_submodule(layer).scaling["default"] == 2.0
    assert stable.get_submodule(layer).scaling["default"] == 4.0


def test_dora_learns_magnitudes():
    model = build("llama", dora=True)
    assert any("lora_magnitude_vector" in name and p.requires_grad for name, p in model.named_parameters())


@pytest.mark.parametrize("form", [{}, {"rslora": True}, {"dora": True}, {"targets": ("all-linear",)}])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_merging_leaves_a_plain_model_with_equal_logits(family, form):
    model = build(family, **form)
    plain_modules = {
        type(module) for module in build_git_llm(f"tiny:{family}", "tiny:clip", trainable="proj")[0].modules()
    }
    with torch.no_grad():
        before = model(IDS, None, pixels(2)).logits
        merge_lora(model.language_model)
        torch.testing.assert_close(model(IDS, None, pixels(2)).logits, before, atol=1e-4, rtol=0)
    assert {type(module) for module in model.modules()} == plain_modules
    with pytest.raises(ConfigError, match="has no LoRA"):
        merge_lora(model.language_model)


@pytest.mark.parametrize("dora", [False, True])
def test_a_merge_for_a_while_is_undone_to_the_last_bit(dora):
    model = build("llama", dora=dora)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        expected = model(IDS, None, pixels(2)).logits
        with pytest.raises(RuntimeError), lora_merged(model.language_model):
            layer = model.language_model.model.layers[0].self_attn.q_proj
            assert not torch.equal(
                layer.base_layer.weight, before["language_model.model.layers.0.self_attn.q_proj.base_layer.weight"]
            )
            torch.testing.assert_close(model(IDS, None, pixels(2)).logits, expected, atol=1e-4, rtol=0)
            raise RuntimeError
        assert torch.equal(model(IDS, None, pixels(2)).logits, expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def sums_in_float32(language_model):
    """Each adapted weight with its update, by the layer's name."""
    layers = {name: layer for name, layer in language_model.named_modules() if hasattr(layer, "lora_A")}
    return {
        name: layer.base_layer.weight.float()
        + layer.scaling["default"] * (layer.lora_B["default"].weight @ layer.lora_A["default"].weight)
        for name, layer in layers.items()
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("way", ["for a while", "for good"])
def test_sums_are_made_in_float32_and_rounded_once(way, dtype):
    model, _ = build_git_llm("tiny:llama", "tiny:clip", lora=LoraSettings(dropout=0.0), dtype=dtype)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    expected = sums_in_float32(model.language_model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with lora_merged(model.language_model) if way == "for a while" else contextlib.nullcontext():
        if way == "for good":
            merge_lora(model.language_model)
        for name, wanted in expected.items():
            layer = model.language_model.get_submodule(name)
            weight = getattr(layer, "base_layer", layer).weight
            assert weight.dtype is DTYPES[dtype]
            torch.testing.assert_close(weight, wanted.to(weight.dtype), atol=0, rtol=0)
    if way == "for a while":
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("way", [merge_lora, lora_merged])
def test_an_update_that_is_not_finite_is_refused_and_the_layer_stays_as_it_was(way):
    model, _ = build_git_llm("tiny:llama", "tiny:clip", lora=LoraSettings(dropout=0.0), dtype="bfloat16")
    layer = model.language_model.model.layers[1].self_attn.k_proj
    layer.lora_B["default"].weight.data[0, 0] = float("nan")
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    fault = pytest.raises(ConfigError, match=r"LoRA of model\.layers\.1\.self_attn\.k_proj cannot be added .* diverged")
    with fault, way(model.language_model) or contextlib.nullcontext():
        pass
    assert model.language_model.model.layers[1].self_attn.k_proj is layer and not layer.merged
    for name, value in layer.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=0, rtol=0, equal_nan=True)

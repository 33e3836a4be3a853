"""The self-test: what it lets through, what it stops, and that each of its questions can be answered with no."""

import pytest
import torch
from transformers import AutoConfig
from transformers.masking_utils import bidirectional_mask_function

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling import GitLLM, last_layer, resolve_family, self_test
from gitllm_plugin.modeling.attention import PrefixRule
from gitllm_plugin.modeling.families import FAMILIES
from gitllm_plugin.modeling.layout import Layout
from gitllm_plugin.modeling.tiny import sharpen, tiny_copy, tiny_image_encoder, tiny_language_model

SERVED = [
    "olmo2",
    "qwen3_moe",
    "gpt_oss",
    "starcoder2",
    "granite",
    "cohere2",
    "glm4",
    "phi",
    "mixtral",
    "deepseek_v3",
    "gptj",
    "bloom",
    "xglm",
]


@pytest.mark.parametrize("model_type", SERVED)
def test_decoders_outside_the_table_are_served_when_they_pass(model_type, monkeypatch):
    monkeypatch.delitem(FAMILIES, model_type, raising=False)  # whoever adds it, it was served before
    assert model_type not in FAMILIES
    family = resolve_family(AutoConfig.for_model(model_type))
    assert family.positions_of(AutoConfig.for_model(model_type)) == ("slots" if model_type == "bloom" else "sequence")


@pytest.mark.parametrize(
    ("model_type", "failing"),
    [
        ("gpt_neo", "an image token sees the whole image"),  # keeps a causal buffer of its own
        ("mamba", "an image token sees the whole image"),  # has no attention
        ("qwen3_next", "texts of one image share it"),  # carries a recurrent state
        ("bert", "attending without a mask changes nothing"),  # its own mask hides nothing
    ],
)
def test_decoders_that_cannot_be_git_are_refused_with_the_property_they_lack(model_type, failing):
    with pytest.raises(ConfigError, match=f"'{model_type}' cannot be a GIT-LLM here(.|\n)*- {failing}"):
        resolve_family(AutoConfig.for_model(model_type))
    assert resolve_family(AutoConfig.for_model(model_type), self_test=False)


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_every_family_passes_at_its_true_configuration(model_type):
    config = AutoConfig.for_model(model_type)
    assert resolve_family(config) is FAMILIES[model_type]


def test_a_copy_keeps_what_is_not_a_size():
    config = AutoConfig.for_model("gemma3_text", num_hidden_layers=12)
    copy = tiny_copy(config, FAMILIES["gemma3_text"]).config
    assert copy.layer_types == ["sliding_attention", "full_attention"]
    assert copy.hidden_size == 64 and config.hidden_size != 64
    longrope = {"rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48, "rope_theta": 1e4}
    phi = AutoConfig.for_model("phi3", rope_parameters={**longrope, "original_max_position_embeddings": 4096})
    assert tiny_copy(phi, FAMILIES["phi3"]).config.rope_parameters["rope_type"] == "default"


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_a_copy_begins_with_weights_of_the_usual_size(model_type):
    usual, large = (
        AutoConfig.for_model(model_type, **given) for given in ({}, {"initializer_range": 0.3, "init_std": 0.3})
    )
    one, other = (tiny_copy(config, FAMILIES[model_type]).state_dict() for config in (usual, large))
    assert all(torch.equal(one[name], other[name]) for name in one)


def tiny_git():
    return GitLLM(tiny_image_encoder("clip"), sharpen(tiny_language_model("llama"))).eval()


def causal_among_images(self, causal):
    return causal


def everything_sees_everything(self, causal):
    return bidirectional_mask_function


def without_padding_mask(monkeypatch):
    original = Layout.__init__

    def init(self, **fields):
        original(self, **{**fields, "attention_mask": torch.ones_like(fields["attention_mask"])})

    monkeypatch.setattr(Layout, "__init__", init)


def with_positions_over_padding(monkeypatch):
    original = Layout.__init__

    def init(self, **fields):
        slots = torch.arange(fields["position_ids"].shape[1]).expand_as(fields["position_ids"])
        original(self, **{**fields, "position_ids": slots})

    monkeypatch.setattr(Layout, "__init__", init)


def with_texts_that_see_each_other(monkeypatch):
    original = PrefixRule.__init__

    def init(self, prefix_end, shared=None):
        if shared is not None:
            shared = (shared[0].clamp(max=0), shared[1])
        original(self, prefix_end, shared)

    monkeypatch.setattr(PrefixRule, "__init__", init)


def with_a_last_layer_at_other_slots(monkeypatch):
    original = last_layer.at_slots
    monkeypatch.setattr(last_layer, "at_slots", lambda part, slots: original(part, slots + 1))


@pytest.mark.parametrize(
    ("fault", "caught"),
    [
        (causal_among_images, {"an image token sees the whole image"}),
        (
            everything_sees_everything,
            {"attending without a mask changes nothing", "text never changes image states"},
        ),
        (without_padding_mask, {"cached decoding equals uncached"}),
        (with_positions_over_padding, {"texts of one image share it"}),  # else rotary positions forgive a shift
        (with_texts_that_see_each_other, {"texts of one image share it"}),
        (with_a_last_layer_at_other_slots, {"logits that are not read change no loss"}),
    ],
)
def test_the_self_test_can_fail(fault, caught, monkeypatch):
    assert not self_test.examine(tiny_git()).faults
    if fault in (causal_among_images, everything_sees_everything):
        monkeypatch.setattr(PrefixRule, "apply", fault)
    else:
        fault(monkeypatch)
    assert caught <= set(self_test.examine(tiny_git()).faults)


def test_a_model_that_does_not_look_at_its_image_is_caught():
    model = tiny_git()
    torch.nn.init.zeros_(model.projection[0].weight)
    assert "an image changes every text logit" in self_test.examine(model).faults

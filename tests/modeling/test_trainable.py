"""What is trained: parts, patterns, groups, tied weights, and the table of it all."""

import logging

import pytest
import torch

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling import GitLLM, LoraSettings, build_git_llm, set_trainable
from gitllm_plugin.modeling.families import FAMILIES
from gitllm_plugin.modeling.parameters import describe_parameters, parameter_rows
from gitllm_plugin.modeling.trainable import (
    load_trainable_state_dict,
    parameter_groups,
    trainable_state_dict,
    untie_head,
)
from gitllm_plugin.tables import as_text
from tests.modeling.batches import pixels

PRESETS = {
    "proj": {"projection"},
    "proj+lora": {"projection", "lora"},
    "proj+llm": {"projection", "language_model", "head"},
    "proj+vit": {"projection", "image_encoder"},
    "proj+lora+vit": {"projection", "lora", "image_encoder"},
    "proj+head": {"projection", "head"},
    "proj+lora+head": {"projection", "lora", "head"},
    "all": {"projection", "lora", "language_model", "head", "image_encoder"},
}


def build(parts="proj", family="llama", lora=True, **settings):
    return build_git_llm(
        f"tiny:{family}",
        "tiny:clip",
        trainable=parts,
        lora=LoraSettings(dropout=0.0) if lora else None,
        **{"dtype": "bfloat16", **settings},
    )[0]


def kind(name):
    if ".lora_" in name:
        return "lora"
    return "head" if "lm_head" in name else name.split(".")[0]


@pytest.mark.parametrize(("parts", "trained"), PRESETS.items())
def test_presets_train_in_float32_what_they_say_and_save_it_alone(parts, trained):
    state = trainable_state_dict(build(parts))
    assert {kind(name) for name in state} == trained
    assert {value.dtype for value in state.values()} == {torch.float32}


@pytest.mark.parametrize("parts", PRESETS)
@pytest.mark.parametrize("family", ["llama", "opt", "mpt", "gpt2"])
def test_gradients_reach_exactly_what_is_declared(family, parts):
    model = build(parts, family, dtype="float32").train()
    if parts == "proj+head" and family != "llama":
        untie_head(model.language_model)
        set_trainable(model, parts)
    with torch.no_grad():  # LoRA starts at zero, where its first half has no gradient
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    ids = torch.arange(3, 3 + 2 * 9).view(2, 9)
    model(ids, None, pixels(2), ids).loss.backward()
    for name, parameter in model.named_parameters():
        has = parameter.grad is not None and bool(parameter.grad.any())
        # Neither the article's features nor GIT's pass CLIP's last norm; the biases of keys cancel in the softmax.
        if not parameter.requires_grad:
            assert parameter.grad is None, name
        elif "post_layernorm" not in name and not name.endswith("k_proj.bias"):
            assert has, name


def test_patterns_select_by_dotted_name_and_parts_may_stand_beside_them():
    model = build(["proj", "language_model.model.layers.1.mlp.*"])
    state = trainable_state_dict(model)
    assert sorted(state) == sorted(
        ["projection.0.bias", "projection.0.weight", "projection.1.bias", "projection.1.weight"]
        + [f"language_model.model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down")]
    )


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ("proj+lora", r"'lora' matches no parameter .*needs `lora:` set"),
        ("proj+haed", "unknown module 'haed' in 'proj.haed'; modules: proj, lora, llm, vit, all, head"),
        (["language_model.model.layers.9.*"], "'language_model.model.layers.9..' matches no parameter .*gitllm param"),
    ],
)
def test_what_matches_nothing_is_an_error(parts, message):
    with pytest.raises(ConfigError, match=message):
        build(parts, lora=False)


def test_a_tied_head_is_saved_only_where_it_is_trained():
    model = build("proj", "opt")
    assert model.language_model.lm_head.weight is model.language_model.get_input_embeddings().weight
    assert not any("lm_head" in name for name in trainable_state_dict(model))


def test_training_a_tied_head_says_what_else_it_trains_and_untying_ends_that(caplog):
    with caplog.at_level(logging.WARNING):
        model = build("proj+head", "opt")
    assert "embed_tokens.weight and language_model.lm_head.weight are one weight" in caplog.text
    assert "model.untie: true" in caplog.text
    caplog.clear()
    untied = build("proj+head", "opt", untie=True)
    assert not caplog.records
    names = [name for name in trainable_state_dict(untied) if "projection" not in name]
    assert names == ["language_model.lm_head.weight"]
    head, embedding = untied.language_model.lm_head.weight, untied.language_model.get_input_embeddings().weight
    assert head is not embedding and torch.equal(head.to(embedding.dtype), embedding)
    with pytest.raises(ConfigError, match="head is not tied"):
        untie_head(untied.language_model)
    assert isinstance(model, GitLLM)


def test_training_the_whole_tied_language_model_needs_no_warning(caplog):
    build("proj+llm", "opt")
    assert not caplog.records


def test_groups_cover_every_trained_parameter_once():
    model = build("proj+lora+head")
    groups = parameter_groups(model, 0.1, {"proj": 3.0, "head": 0.5}, {"lora": 0.0})
    listed = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    rates = {(group["weight_decay"], group["lr_scale"]) for group in groups}
    assert rates == {(0.1, 3.0), (0.0, 3.0), (0.0, 1.0), (0.1, 0.5)}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lr_scale": {"vit": 2.0}}, "lr_scale: nothing of module 'vit' is trained"),
        (
            {"module_weight_decay": {"lorra": 2.0}},
            "weight_decay: nothing of module 'lorra' is trained; modules: proj, lora",
        ),
    ],
)
def test_rates_of_parts_that_are_not_trained_are_an_error(given, message):
    with pytest.raises(ConfigError, match=message):
        parameter_groups(build("proj"), 0.1, **given)


def test_frozen_parts_have_the_dtype_asked_for():
    model = build("proj+lora", dtype="float16")
    dtypes = {(kind(name), parameter.dtype) for name, parameter in model.named_parameters()}
    assert dtypes == {
        ("projection", torch.float32),
        ("lora", torch.float32),
        ("language_model", torch.float16),
        ("head", torch.float16),
        ("image_encoder", torch.float16),
    }


def test_four_bits_are_refused_without_a_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="load_in_4bit needs a CUDA GPU"):
        build(load_in_4bit=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_trained_encoder_keeps_its_batch_statistics(dtype):
    """They are in no checkpoint of what is trained: were they to move, a model that is loaded would be another."""
    model, _ = build_git_llm("tiny:llama", "tiny:timm", trainable="proj+vit", dtype=dtype)
    before = {name: buffer.clone() for name, buffer in model.image_encoder.named_buffers()}
    assert any("running_mean" in name for name in before)
    assert {buffer.dtype for buffer in before.values() if buffer.is_floating_point()} == {torch.float32}
    images, ids = torch.randn(2, 3, 64, 64), torch.arange(3, 3 + 2 * 9).view(2, 9)
    model.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        loss = model(ids, None, images, ids).loss
    loss.backward()
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.image_encoder.named_buffers())
    assert any(parameter.grad.any() for parameter in model.image_encoder.parameters() if parameter.grad is not None)
    # What is saved is all that a fresh model needs to become this one.
    with torch.no_grad():
        for parameter in model.image_encoder.parameters():
            parameter.mul_(1.1)
    fresh, _ = build_git_llm("tiny:llama", "tiny:timm", trainable="proj+vit", dtype=dtype)
    fresh.image_encoder.tower.load_state_dict(
        {**fresh.image_encoder.tower.state_dict(), **dict(model.image_encoder.tower.named_buffers())}
    )
    load_trainable_state_dict(fresh, trainable_state_dict(model))
    first, second = (each.eval().encode_images(images)[0] for each in (model, fresh))
    assert torch.equal(first, second)


@pytest.mark.parametrize("parts", ["proj+lora", "all"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_gradient_checkpointing_changes_no_gradient(family, parts):
    ids = torch.arange(3, 3 + 2 * 9).view(2, 9)
    gradients = []
    for checkpointing in (False, True):
        model = build(parts, family, dtype="float32", gradient_checkpointing=checkpointing).train()
        assert model.language_model.is_gradient_checkpointing == checkpointing
        torch.manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".lora_" in name or name.startswith("projection"):
                    parameter.normal_(std=0.1)
        model(ids, None, pixels(2), ids, image_index=torch.tensor([0, 1])).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-5, msg=name)


def test_table_counts_every_parameter_once_and_puts_layers_together():
    model = build("proj+lora", "opt")
    rows = parameter_rows(model)
    assert sum(row.count for row in rows) == sum(p.numel() for p in model.parameters())
    assert sum(row.count for row in rows if row.trained) == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )
    names = [row.name for row in rows]
    assert "language_model.model.decoder.layers.{0-1}.fc1.weight" in names
    assert not any(".0." in name and ".layers." in name for name in names)
    text = as_text(describe_parameters(rows))
    trained = sum(row.count for row in rows if row.trained)
    assert f"{trained:,} of {sum(row.count for row in rows):,} parameters are trained" in text

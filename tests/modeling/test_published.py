"""Checkpoints of the published implementation, and the numbers that it computed from them."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.modeling import load_published

FOLDER = Path(__file__).parents[1] / "data" / "published"
CASES = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())


def read(name):
    """Configuration, weights and reference numbers of a case."""
    folder = FOLDER / name
    config = json.loads((folder / "config.json").read_text())
    return config, load_file(folder / "weights.safetensors"), load_file(folder / "forward.safetensors")


@pytest.fixture(scope="module", params=CASES)
def case(request):
    config, weights, reference = read(request.param)
    alpha = 32 if request.param.endswith("_lora") else None
    return load_published(config, weights, lora_alpha=alpha), reference


def inputs(reference, rows):
    return {name: reference[f"{rows}/in/{name}"] for name in ("input_ids", "attention_mask", "pixel_values", "labels")}


@pytest.mark.parametrize("rows", ["full", "rightpad"])
def test_logits_and_loss_are_the_published_ones(case, rows):
    model, reference = case
    given = inputs(reference, rows)
    out = model(**given)
    real = given["attention_mask"].bool()
    expected = reference[f"{rows}/logits"][:, -real.shape[1] :]
    torch.testing.assert_close(out.logits[real], expected[real], atol=1e-4, rtol=0)
    torch.testing.assert_close(out.loss, reference[f"{rows}/loss"][0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("rows", ["full", "rightpad"])
@pytest.mark.parametrize("name", [case for case in CASES if not case.endswith("_lora")])
def test_gradients_are_the_published_ones(name, rows):
    config, weights, reference = read(name)
    model = load_published(config, {key: value.clone() for key, value in weights.items()})
    model(**inputs(reference, rows)).loss.backward()
    gradients = {key.split("/grad/")[1]: value for key, value in reference.items() if key.startswith(f"{rows}/grad/")}
    assert gradients
    for published, expected in gradients.items():
        torch.testing.assert_close(gradient_of(model, published, weights), expected, atol=1e-4, rtol=0, msg=published)


def gradient_of(model, published, weights):
    """The gradient of our parameter that holds a published one's value."""
    if "img_temporal_embedding" in published:
        return model.temporal_embedding.grad[int(published.rsplit(".", 1)[1])][None]
    value = weights[published]
    [found] = [p for p in model.parameters() if p.shape == value.shape and torch.equal(p, value)]
    return found.grad


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_greedy_tokens_are_the_published_ones(case, cache):
    model, reference = case
    if "generate/greedy" not in reference:
        pytest.skip("generation was not recorded")
    given = inputs(reference, "full")
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 1}
    if cache == "static" and model.decoder.family.name != "mpt":  # transformers' MPT has no static cache
        options["cache_implementation"] = "static"
    tokens = model.generate(given["input_ids"][:1, :4], None, given["pixel_values"][:1], **options)
    assert torch.equal(tokens, reference["generate/greedy"])


def test_everything_is_trainable_and_in_evaluation_mode(case):
    model, _ = case
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())


def test_lora_is_merged_wherever_it_was():
    config, weights, reference = read("opt_lora")
    adapted = [name for name in weights if "lora_A" in name]
    assert any("image_encoder" in name for name in adapted) and any("decoder.layers" in name for name in adapted)
    given = inputs(reference, "full")
    # Newer PEFT names the layer itself `base_layer`; OPT's decoder alone may be wrapped.
    newer = {name.replace("base_model.model.", "", 1): value for name, value in weights.items()}
    for name in adapted:
        layer = name.split(".lora_A")[0].replace("base_model.model.", "", 1)
        for kind in ("weight", "bias"):
            newer[f"{layer}.base_layer.{kind}"] = newer.pop(f"{layer}.{kind}")
    infix = {name.replace("model.decoder.", "model.decoder.base_model.model.", 1): v for name, v in newer.items()}
    said = {**config, "lora": {"r": 2, "lora_alpha": 32, "target_modules": ["q_proj", "v_proj"]}}
    for state_dict in (newer, infix):
        torch.testing.assert_close(
            load_published(said, state_dict)(**given).loss, reference["full/loss"][0], atol=1e-5, rtol=0
        )
    with pytest.warns(UserWarning, match="does not say its lora_alpha: 32 is assumed"):
        load_published(config, weights)


def test_harmless_extra_keys_are_passed_over():
    config, weights, reference = read("llama")
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(2),
        "model.image_encoder.vision_model.embeddings.position_ids": torch.arange(5)[None],
    }
    model = load_published(config, {**weights, **extra})
    torch.testing.assert_close(model(**inputs(reference, "full")).loss, reference["full/loss"][0], atol=1e-5, rtol=0)
    config, weights, _ = read("gpt_neox")
    buffers = {"gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 8, 8).bool()}
    load_published(config, {**weights, **buffers, "gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.update({"model.layers.0.extra.weight": torch.zeros(1)}), "not in the model: model.layers.0.extra"),
        (lambda w: w.update({"model.image_encoder.vision_model.extra": torch.zeros(1)}), "not in the model: .*extra"),
        (lambda w: w.pop("model.layers.1.mlp.up_proj.weight"), "missing: model.layers.1.mlp.up_proj.weight"),
        (lambda w: w.update({"model.norm.weight": torch.zeros(3)}), "model.norm.weight"),
        (lambda w: w.pop("model.visual_projection.visual_projection.1.bias"), "visual_projection does not fit"),
        (lambda w: w.pop("model.visual_projection.visual_projection.0.weight"), "no key ends with visual_projection"),
        (
            lambda w: w.update({"model.img_temporal_embedding.0": torch.zeros(1, 1, 16)}),
            "num_image_with_embedding is 0",
        ),
        (
            lambda w: w.update({"model.layers.0.self_attn.q_proj.lora_A.default.weight": torch.zeros(2, 16)}),
            "without their layer or their other half: model.layers.0.self_attn.q_proj.weight",
        ),
    ],
)
def test_what_cannot_be_explained_is_listed(change, message):
    config, weights, _ = read("llama")
    change(weights)
    with pytest.raises(ConfigError, match=message):
        load_published(config, weights)


@pytest.mark.parametrize(
    "change", [{"model_type": "llama"}, {"model_type": "git_nothing"}, {"model_type": None}, {"vision_config": None}]
)
def test_other_configurations_are_refused(change):
    config, weights, _ = read("llama")
    changed = {key: value for key, value in {**config, **change}.items() if value is not None}
    with pytest.raises(ConfigError, match="not a published GIT-LLM configuration"):
        load_published(changed, weights)


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("git_japanese_stablelm_alpha", "no architecture of transformers"),
        ("video_blip", "BLIP-2.*no GIT projection"),
        ("llava_llama", "LLaVA.*no GIT projection"),
    ],
)
def test_what_was_released_and_cannot_be_opened_is_refused_by_name(model_type, reason):
    with pytest.raises(ConfigError, match=f"model_type '{model_type}' cannot be opened: .*{reason}"):
        load_published({"model_type": model_type, "text_config": {}}, {})


@pytest.mark.parametrize("changes", [{}, {"vocab_size": 53}, {"num_key_value_heads": 1}])
def test_the_released_kinds_of_llama_open(changes):
    """Plain, with a longer vocabulary, with grouped queries."""
    config, weights, _ = read("llama")
    config = {**config, **changes}
    for name, value in list(weights.items()):
        if "vocab_size" in changes and name.endswith(("embed_tokens.weight", "lm_head.weight")):
            weights[name] = torch.randn(53, value.shape[1])
        if (
            "num_key_value_heads" in changes
            and re.search(r"self_attn\.[kv]_proj\.weight$", name)
            and "image_encoder" not in name
        ):
            weights[name] = value[: config["hidden_size"] // config["num_attention_heads"]].clone()
    model = load_published(config, weights)
    for key, value in changes.items():
        assert getattr(model.language_model.config, key) == value


def test_frames_beyond_the_temporal_table_and_wrong_sizes_are_refused():
    config, weights, reference = read("llama_video")
    model = load_published(config, weights)
    ids = reference["full/in/input_ids"]
    with pytest.raises(DataError, match="4 images .or frames. for one text, but this model was built for 3"):
        model(ids, None, torch.zeros(2, 4, 3, 16, 16))
    with pytest.raises(ConfigError, match="images of 20x20 pixels, but clip_vision_model takes 16x16"):
        model(ids, None, torch.zeros(2, 3, 20, 20))


def test_an_image_without_a_place_gets_no_temporal_embedding():
    config, weights, reference = read("llama_video")
    model = load_published(config, weights)
    ids, image = reference["full/in/input_ids"], torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        before, in_place = model(ids, None, image).logits, model(ids, None, image[:, None]).logits
        model.temporal_embedding.zero_()
        assert torch.equal(model(ids, None, image).logits, before)
        assert not torch.allclose(in_place, before)

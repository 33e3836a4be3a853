"""Streams: exact against the dense float mask, and nothing is computed that does not count."""

import copy

import pytest
import torch
from transformers import AutoConfig

from gitllm_plugin.modeling import GitLLM, attention, stream
from gitllm_plugin.modeling.build import enable_gradient_checkpointing
from gitllm_plugin.modeling.families import FAMILIES, default_family
from gitllm_plugin.modeling.last_layer import feed_forward
from gitllm_plugin.modeling.self_test import make_probe
from gitllm_plugin.modeling.stream_layout import lay_out_stream
from gitllm_plugin.modeling.tiny import sharpen, tiny_copy, tiny_image_encoder
from tests.modeling.batches import FAMILY_NAMES, TEXTS, pixels, shift_padding, tiny_model

WITH_MASK = {"falcon", "gemma2", "stablelm"} | {name for name in FAMILY_NAMES if FAMILIES[name].positions == "slots"}
"""Families whose attention is their own, or caps its scores, or computes positions from slots."""
STREAMING = [name for name in FAMILY_NAMES if name not in WITH_MASK]
PROMPTS = [TEXTS[i][0] for i in (1, 2, 1, 0, 1, 1)]
ANSWERS = [TEXTS[i][1] for i in (1, 2, 1, 0, 1, 1)]
IMAGE_INDEX = torch.tensor([0, 1, 0, 2, 0, 0])


def batch(text_encoder, **changes):
    text = text_encoder.prompts_and_answers(PROMPTS, ANSWERS)
    given = {"input_ids": text.input_ids, "attention_mask": text.attention_mask, "labels": text.labels}
    return {**given, "pixel_values": pixels(3), "image_index": IMAGE_INDEX, **changes}


def loss_and_gradients(model, inputs):
    model.zero_grad()
    out = model(**inputs)
    out.loss.backward()
    return out, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(model, inputs, other, other_inputs):
    out, gradients = loss_and_gradients(model, inputs)
    expected, expected_gradients = loss_and_gradients(other, other_inputs)
    assert gradients.keys() == expected_gradients.keys() and gradients
    torch.testing.assert_close(out.logits, expected.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(out.loss, expected.loss, atol=1e-6, rtol=0)
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-5, rtol=1e-5, msg=name)


def with_dense_mask(model):
    dense = copy.deepcopy(model)
    dense.language_model.set_attn_implementation("eager")
    return dense


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_model_says_which_path_it_takes(family):
    model, _ = tiny_model(family)
    assert model.decoder.attention_path == ("mask" if family in WITH_MASK else "stream")


@pytest.mark.parametrize("family", STREAMING)
def test_forward_and_gradients_are_those_of_the_dense_float_mask(family):
    """Images with four, one and one text; a row a text on the other side."""
    model, text_encoder = tiny_model(family)
    dense = with_dense_mask(model)
    assert dense.decoder.attention_path == "mask"
    inputs = batch(text_encoder)
    assert_same(model, inputs, dense, {**inputs, "pixel_values": pixels(3)[IMAGE_INDEX], "image_index": None})


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_gradients_are_the_same_when_the_last_layer_computes_supervised_slots_alone(family):
    model, text_encoder = tiny_model(family, trainable="all")
    inputs = batch(text_encoder)
    (first, _), seen = feed_forward(model.language_model), []
    first.register_forward_hook(lambda module, args, out: seen.append(out.shape[:-1].numel()))
    _, expected = loss_and_gradients(model, inputs)
    out, gradients = loss_and_gradients(model, {**inputs, "logits": "none"})
    assert seen == [seen[0], out.num_supervised_tokens] and seen[0] > seen[1]
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "gpt_oss", "olmo2"])
def test_decoders_outside_the_table_train_at_supervised_slots_alone(model_type):
    """Experts among them, which want three dimensions or give their routing beside their states."""
    config = AutoConfig.for_model(model_type)
    family = default_family(config)
    probe = make_probe(GitLLM(tiny_image_encoder("clip"), sharpen(tiny_copy(config, family)), family=family))
    labels = probe.input_ids.masked_fill(~probe.attention_mask.bool(), -100)
    labels[:, :2] = -100
    inputs = {**batch_of(probe), "labels": labels}
    _, expected = loss_and_gradients(probe.model, inputs)
    _, gradients = loss_and_gradients(probe.model, {**inputs, "logits": "none"})
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def batch_of(probe):
    return {name: getattr(probe, name) for name in ("input_ids", "attention_mask", "pixel_values")}


class SavesTransposed(torch.autograd.Function):
    """Attention that saves ``[N, T, H, D]``, as the memory-efficient kernel of CUDA does."""

    @staticmethod
    def forward(ctx, query, key, value, allowed, scale):
        ctx.save_for_backward(query, key, value)
        ctx.allowed, ctx.scale = allowed, scale
        return SavesTransposed.compute(query, key, value, allowed, scale)

    @staticmethod
    def compute(query, key, value, allowed, scale):
        scores = torch.einsum("bthd,bshd->bhts", query, key) * scale
        return torch.einsum("bhts,bshd->bthd", scores.masked_fill(~allowed, -torch.inf).softmax(-1), value)

    @staticmethod
    def backward(ctx, gradient):
        with torch.enable_grad():
            states = [saved.detach().requires_grad_() for saved in ctx.saved_tensors]
            seen = SavesTransposed.compute(*states, ctx.allowed, ctx.scale)
        return (*torch.autograd.grad(seen, states, gradient), None, None)


@pytest.mark.parametrize(("heads", "length"), [(4, 7), (7, 7), (12, 7)])
def test_kernels_that_save_a_transposed_view_get_it_back(heads, length, monkeypatch):
    """Also where as many heads as tokens give it the shape of what was handed in."""

    def attend(query, key, value, attn_mask=None, scale=None, **kwargs):
        views = [states.transpose(1, 2) for states in (query, key, value)]
        scale = scale or query.shape[-1] ** -0.5
        allowed = torch.ones(query.shape[2], key.shape[2]).bool() if attn_mask is None else attn_mask
        return SavesTransposed.apply(*views, allowed, scale).transpose(1, 2)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)

    def gradients(keeps_copies):
        torch.manual_seed(0)
        image, text = torch.ones(2, 5, dtype=torch.bool), torch.ones(2, length, dtype=torch.bool)
        rule = lay_out_stream(image, text, keeps_copies=keeps_copies).rule.stream
        states = [torch.randn(1, heads, rule.size, 8, requires_grad=True) for _ in range(3)]
        seen, _ = stream.attend(torch.nn.Module(), *states, rule)
        (seen * torch.randn_like(seen)).sum().backward()
        return [part.grad for part in states]

    for again, kept in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(again, kept, atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_texts_with_several_images_with_none_and_padded_on_the_left(family):
    model, text_encoder = tiny_model(family, max_images=2, trainable="all")
    with torch.no_grad():
        model.temporal_embedding.normal_()
    text = text_encoder.prompts_and_answers(PROMPTS[:4], ANSWERS[:4])
    lengths = text.attention_mask.sum(1)
    given = {"pixel_values": pixels(4, frames=2), "num_images": torch.tensor([2, 0, 1, 2])}
    for name in ("input_ids", "attention_mask", "labels"):
        given[name] = shift_padding(getattr(text, name), lengths)
    assert_same(model, given, with_dense_mask(model), given)


@pytest.mark.parametrize("family", ["opt", "llama", "gemma3_text"])
def test_gradient_checkpointing_changes_nothing(family):
    model, text_encoder = tiny_model(family)
    checkpointed = copy.deepcopy(model)
    enable_gradient_checkpointing(checkpointed)
    inputs = batch(text_encoder)
    assert_same(checkpointed.train(), inputs, model, inputs)


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_a_compiled_decoder_computes_the_same(family):
    """Traced without a break; the trace is run as it is, so that no C++ compiler is needed."""
    model, text_encoder = tiny_model(family)
    compiled = copy.deepcopy(model)
    inner = compiled.language_model.base_model
    inner.forward = torch.compile(inner.forward, backend="aot_eager", fullgraph=True)
    inputs = batch(text_encoder)
    assert_same(compiled, inputs, model, inputs)


@pytest.mark.slow
def test_compiled_layers_are_compiled_again_for_few_batches_alone():
    model, text_encoder = tiny_model("llama")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for layer in model.language_model.model.layers:
        layer.compile(backend="aot_eager", fullgraph=True)
    for images, texts in ((2, 1), (3, 2), (4, 1), (2, 3), (3, 1), (4, 2), (3, 3)):
        text = text_encoder.prompts_and_answers(
            [PROMPTS[i % 6] for i in range(images * texts)], ["yes"] * images * texts
        )
        index = torch.arange(images).repeat_interleave(texts)
        model(text.input_ids, text.attention_mask, pixels(images), text.labels, image_index=index).loss.backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 3


def test_nothing_is_computed_that_does_not_count(monkeypatch):
    """Deterministic counters over one training step."""
    model, text_encoder = tiny_model("llama", trainable="proj+lora")
    seen = {"masks": [], "heads": 0, "images": 0, "tokens": set()}

    def attend(module, query, key, value, attention_mask, **kwargs):
        seen["masks"].append(attention_mask)
        return stream.attend(module, query, key, value, attention_mask, **kwargs)

    monkeypatch.setattr(attention, "attend", attend)
    decoder = model.language_model
    decoder.lm_head.register_forward_hook(lambda _, args, out: seen.update(heads=seen["heads"] + len(out)))
    model.image_encoder.register_forward_hook(lambda _, args, out: seen.update(images=seen["images"] + len(out)))
    for layer in decoder.model.layers[:-1]:
        layer.mlp.register_forward_hook(lambda _, args, out: seen["tokens"].add(out.shape[:2].numel()))
    inputs = batch(text_encoder)
    out = model(**inputs, logits="none")
    out.loss.backward()

    supervised = int((inputs["labels"][:, 1:] != -100).sum())
    assert out.num_supervised_tokens == seen["heads"] == supervised, "logit rows are supervised tokens"
    assert seen["images"] == 3, "each image is encoded once"
    real = 3 * 17 + int(inputs["attention_mask"].sum())
    assert seen["tokens"] == {real}, "no padding passes a linear layer, and each image passes once"
    mask_bytes = sum(mask.nbytes for mask in seen["masks"] if isinstance(mask, torch.Tensor))
    assert len(seen["masks"]) == 2 and mask_bytes == 0
    places = sum(group.text_places.numel() for mask in seen["masks"][:1] for group in mask.groups)
    assert places == int(inputs["attention_mask"].sum()), "who attends to whom is one number a text token"


def test_a_stream_holds_every_token_once_in_groups():
    images = torch.tensor([[1, 1], [1, 0], [1, 1], [0, 0]]).bool()
    texts = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 0, 0], [1, 1, 0]]).bool()
    layout = lay_out_stream(images, texts, torch.tensor([2, 1, 0, 3, 2]))
    assert layout.attention_mask.tolist() == [[1] * 14]
    kinds = [(g.image_length, g.image_tokens, g.text_tokens, g.num_texts) for g in layout.rule.stream.groups]
    assert kinds == [(0, 0, 1, 1), (1, 1, 1, 1), (2, 2, 3, 1), (2, 2, 4, 2)]
    assert layout.position_ids.tolist() == [[0, 0, 1, 0, 1, 2, 3, 4, 0, 1, 2, 3, 2, 3]]
    assert layout.text_slots.tolist() == [10, 11, 2, 5, 6, 7, 0, 12, 13]
    assert layout.rule.stream.groups[2].text_places.tolist() == [0, 1, 2]
    assert layout.rule.stream.size == 14


@pytest.mark.parametrize("family", STREAMING)
def test_autocast_reaches_attention_of_float32_weights(family):
    """Rotary positions make float32 queries beside bfloat16 values, which torch's causal biases refuse."""
    model, text_encoder = tiny_model(family, trainable="all")
    dense, inputs = with_dense_mask(model), batch(text_encoder)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        loss, expected = model(**inputs).loss, dense(**inputs).loss
    torch.testing.assert_close(loss, expected, atol=2e-2, rtol=0)

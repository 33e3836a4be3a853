"""Streams: exact against the dense float mask, and nothing is computed that does not count."""

import copy

import pytest
import torch

from gitllm_plugin.modeling import attention, stream
from gitllm_plugin.modeling.build import enable_gradient_checkpointing
from gitllm_plugin.modeling.last_layer import feed_forward
from gitllm_plugin.modeling.layout import lay_out_stream
from tests.modeling.batches import FAMILY_NAMES, TEXTS, pixels, shift_padding, tiny_model

WITH_MASK = {"falcon", "gemma2", "mpt", "stablelm"}
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
    assert model.attention_path == ("mask" if family in WITH_MASK else "stream")


@pytest.mark.parametrize("family", STREAMING)
def test_forward_and_gradients_are_those_of_the_dense_float_mask(family):
    """Images with four, one and one text; a row a text on the other side."""
    model, text_encoder = tiny_model(family)
    dense = with_dense_mask(model)
    assert dense.attention_path == "mask"
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
    assert layout.text_slot.tolist() == [10, 11, 2, 5, 6, 7, 0, 12, 13]
    assert layout.rule.stream.groups[2].text_places.tolist() == [0, 1, 2]
    assert layout.rule.stream.size == 14

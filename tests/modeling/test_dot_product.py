"""Attention by dot products: brute force in both precisions, and on a CPU in bfloat16 by products that keep nothing."""

from typing import get_args

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from gitllm_plugin.config.model import AttentionKind
from gitllm_plugin.modeling import dot_product
from gitllm_plugin.modeling.dot_product import dot_product_attention
from gitllm_plugin.modeling.stream import attend
from tests.modeling.batches import pixels, tiny_model

CASES = {  # batch, heads, heads of keys, queries, keys, width, causal
    "an image": (2, 4, 4, 9, 9, 16, False),
    "texts behind images": (3, 4, 4, 5, 14, 16, True),
    "texts alone": (2, 2, 2, 7, 7, 8, True),
    "shared keys": (2, 6, 2, 5, 12, 16, True),
    "one key for all heads, seen whole": (1, 4, 1, 6, 6, 8, False),
    "one query": (2, 2, 2, 1, 8, 16, True),
}
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 6e-3}


def drawn(case, dtype, sharp=1.0):
    batch, heads, key_heads, queries, keys, width, causal = CASES[case]
    generator = torch.Generator().manual_seed(0)
    sizes = (heads, queries, sharp), (key_heads, keys, sharp), (key_heads, keys, 1)
    states = [torch.randn(batch, count, length, width, generator=generator) * by for count, length, by in sizes]
    return [each.to(dtype).requires_grad_() for each in states], causal


def drawn_mask(batch, queries, keys):
    """Each text its own; padding sees nothing that is read, so that one query sees a single key."""
    mask = torch.rand(batch, 1, queries, keys, generator=torch.Generator().manual_seed(2)) < 0.5
    mask[..., -1] = True
    mask[0, 0, 0, :-1] = False
    return mask


def _rule(query, key, causal):
    return causal_lower_right(query.shape[2], key.shape[2]) if causal else None


def brute_force(query, key, value, causal, scale, mask=None):
    """One query of one head after another, in float64."""
    seen = torch.zeros_like(query)
    sharing = query.shape[1] // key.shape[1]
    hidden_from_first = key.shape[2] - query.shape[2] + 1
    for b in range(query.shape[0]):
        for h in range(query.shape[1]):
            for q in range(query.shape[2]):
                end = hidden_from_first + q if causal else key.shape[2]
                keys, values = key[b, h // sharing, :end], value[b, h // sharing, :end]
                if mask is not None:
                    keys, values = keys[mask[b, 0, q]], values[mask[b, 0, q]]
                weights = torch.exp(scale * keys @ query[b, h, q])
                seen[b, h, q] = (weights / weights.sum()) @ values
    return seen


def with_gradients(attend, states):
    seen = attend(*states)
    direction = torch.randn(seen.shape, generator=torch.Generator().manual_seed(1)).to(seen.dtype)
    return [seen, *torch.autograd.grad(seen, states, direction)]


def errors(found, expected):
    return [float(((a.double() - b).norm() / b.norm()).detach()) for a, b in zip(found, expected, strict=True)]


def exactly(states, causal, scale, mask=None):
    wide = [each.detach().double().requires_grad_() for each in states]
    return with_gradients(lambda *given: brute_force(*given, causal, scale, mask), wide)


@pytest.mark.parametrize("at_once", [1, 100, 2**18])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", CASES)
def test_results_and_gradients_are_those_of_brute_force(monkeypatch, case, dtype, scale, at_once):
    monkeypatch.setattr(dot_product, "_SCORES_AT_ONCE", at_once)
    states, causal = drawn(case, dtype)
    found = with_gradients(lambda *given: dot_product_attention(*given, causal=causal, scale=scale), states)
    expected = exactly(states, causal, states[0].shape[-1] ** -0.5 if scale is None else scale)
    assert all(each.dtype == dtype and each.shape == exact.shape for each, exact in zip(found, expected, strict=True))
    assert max(errors(found, expected)) < TOLERANCE[dtype]


@pytest.mark.parametrize("at_once", [110, 2**18])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", CASES)
def test_masked_results_and_gradients_are_those_of_brute_force(monkeypatch, case, dtype, at_once):
    monkeypatch.setattr(dot_product, "_SCORES_AT_ONCE", at_once)
    states, _ = drawn(case, dtype)
    mask = drawn_mask(len(states[0]), states[0].shape[2], states[1].shape[2])
    found = with_gradients(lambda *given: dot_product_attention(*given, mask=mask), states)
    expected = exactly(states, False, states[0].shape[-1] ** -0.5, mask)
    assert max(errors(found, expected)) < TOLERANCE[dtype]


def test_a_query_that_sees_nothing_gives_numbers_and_no_gradient():
    states, _ = drawn("an image", torch.bfloat16)
    mask = torch.ones(len(states[0]), 1, states[0].shape[2], states[1].shape[2], dtype=torch.bool)
    mask[1, 0, 3] = False
    seen = dot_product_attention(*states, mask=mask)
    read = torch.ones_like(seen)
    read[1, :, 3] = 0
    gradients = torch.autograd.grad((seen * read).sum(), states)
    assert seen.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[0][1, :, 3].any()


@pytest.mark.parametrize("case", ["an image", "texts behind images", "texts alone"])
@pytest.mark.parametrize("autocast", [False, True])
def test_sharp_heads_are_no_less_exact_than_by_torchs_kernel(case, autocast):
    states, causal = drawn(case, torch.bfloat16, sharp=3.0)
    expected = exactly(states, causal, states[0].shape[-1] ** -0.5)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        products = with_gradients(lambda *given: dot_product_attention(*given, causal=causal), states)
    kernel = with_gradients(
        lambda *given: F.scaled_dot_product_attention(*given, attn_mask=_rule(*given[:2], causal)), states
    )
    # Scores in bfloat16 would be four times as far off.
    assert max(errors(products, expected)) < 1.3 * max(errors(kernel, expected))


@pytest.mark.parametrize(
    ("dtype", "dropout", "in_products"),
    [
        (torch.bfloat16, 0.0, True),
        (torch.bfloat16, 0.1, False),
        (torch.float32, 0.0, False),
        (torch.float16, 0.0, False),
    ],
)
def test_products_are_for_bfloat16_without_dropout(monkeypatch, dtype, dropout, in_products):
    kernel_calls, kernel = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: kernel_calls.append(k) or kernel(*a, **k))
    states, _ = drawn("an image", dtype)
    dot_product_attention(*states, dropout=dropout)
    assert len(kernel_calls) == (not in_products)


def test_no_scores_are_kept_for_the_backward_pass():
    kept = []
    states, causal = drawn("texts behind images", torch.bfloat16)
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved) or saved, lambda saved: saved):
        dot_product_attention(*states, causal=causal)
    assert [each.data_ptr() for each in kept] == [each.data_ptr() for each in states]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("masked", [False, True])
def test_values_may_be_narrower_than_keys(dtype, masked):
    query, key, value = drawn("shared keys", dtype)[0]
    narrow = value[..., :8].detach().requires_grad_()
    mask = drawn_mask(len(query), query.shape[2], key.shape[2]) if masked else None
    found = with_gradients(
        lambda *given: dot_product_attention(*given, mask=mask, causal=not masked), [query, key, narrow]
    )
    allowed = (
        mask if masked else torch.ones(query.shape[2], key.shape[2], dtype=bool).tril(key.shape[2] - query.shape[2])
    )
    wide = [each.detach().double().requires_grad_() for each in (query, key, narrow)]
    expected = with_gradients(
        lambda *given: F.scaled_dot_product_attention(*given, attn_mask=allowed, enable_gqa=True), wide
    )
    assert max(errors(found, expected)) < TOLERANCE[dtype]


def _mask_of(kind, queries, keys):
    mask = drawn_mask(2, queries, keys)
    return {
        "whole": mask,
        "of padding": mask[:, :, -1:].clone().fill_(True),
        "of one text": mask[:1],
        "of each head": mask.repeat(1, 6, 1, 1),
        "added": torch.zeros(mask.shape, dtype=torch.bfloat16).masked_fill_(~mask, -1e9),
        "with a bias": mask,
        "none": None,
    }[kind]


@pytest.mark.parametrize("learning", [True, False])
@pytest.mark.parametrize("kind", ["whole", "of padding", "of one text", "of each head", "added", "with a bias", "none"])
def test_masks_go_by_products_where_they_tell_all_and_are_as_by_torchs_kernel(monkeypatch, kind, learning):
    states, _ = drawn("shared keys", torch.bfloat16)
    states = [each[:2].detach().requires_grad_() for each in states]
    mask = _mask_of(kind, states[0].shape[2], states[1].shape[2])
    more = {"position_bias": torch.ones(1, 6, 5, 12, dtype=torch.bfloat16)} if kind == "with a bias" else {}
    module = torch.nn.Module()
    module.num_key_value_groups = 3
    taken = []
    products = dot_product._Products.apply
    monkeypatch.setattr(dot_product._Products, "apply", lambda *given: taken.append(given) or products(*given))
    with torch.set_grad_enabled(learning):
        found = attend(module, *states, mask, **more)[0]
        expected = sdpa_attention_forward(module, *states, mask, **more)[0]
    assert len(taken) == (kind == "whole" and learning)
    assert found.is_contiguous() == expected.is_contiguous()
    assert max(errors([found], [expected.double()])) < TOLERANCE[torch.bfloat16]


def test_masks_that_are_longer_than_the_cache_go_to_the_kernel(monkeypatch):
    kernel_calls, kernel = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: kernel_calls.append(k) or kernel(*a, **k))
    states, _ = drawn("an image", torch.bfloat16)
    mask = drawn_mask(len(states[0]), states[0].shape[2], states[1].shape[2])
    for at_once in (mask.shape[2] ** 2 - 1, mask.shape[2] ** 2):
        monkeypatch.setattr(dot_product, "_SCORES_AT_ONCE", at_once)
        dot_product_attention(*states, mask=mask)
    assert len(kernel_calls) == 1


@pytest.mark.parametrize("family", ["opt", "llama", "qwen2"])
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("attention", get_args(AttentionKind))
def test_a_training_step_in_bfloat16_takes_no_kernel_and_gives_the_kernels_gradients(
    monkeypatch, family, checkpointed, attention
):
    model, text_encoder = tiny_model(family, attention=attention)
    if checkpointed:
        model.language_model.gradient_checkpointing_enable()
    model.train()
    model.image_encoder.requires_grad_(False)
    text = text_encoder.prompts_and_answers(["what color?", "what shape is it?", "where?"], ["red", "a circle", "up"])
    given = {"input_ids": text.input_ids, "attention_mask": text.attention_mask, "labels": text.labels}
    given |= {"pixel_values": pixels(2), "image_index": torch.tensor([0, 0, 1])}

    def gradients():
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**given).loss
        loss.backward()
        return torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])

    exact = torch.cat([p.flatten() for p in _exact_gradients(model, given)])
    found = gradients()
    monkeypatch.setattr(dot_product, "is_faster_in_products", lambda *states: False)
    by_kernel = gradients()
    assert not torch.equal(found, by_kernel)
    assert (found - exact).norm() < 1.3 * (by_kernel - exact).norm()


def _exact_gradients(model, given):
    model.double().zero_grad()
    model(**{**given, "pixel_values": given["pixel_values"].double()}).loss.backward()
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.float()
    return found

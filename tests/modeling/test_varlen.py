"""Attention by pieces of any lengths: exact by a reference of the kernel's contract, chosen by a clear rule."""

import copy
import inspect
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention.varlen import varlen_attn

from gitllm_plugin.modeling import stream, varlen
from gitllm_plugin.modeling.stream_layout import lay_out_stream
from tests.modeling.batches import TEXTS, pixels, tiny_model

BATCHES = {
    "one text an image": ([5, 5, 5], [4, 7, 2], None),
    "several texts, unlike many": ([5, 5], [4, 7, 2, 3], [1, 0, 1, 1]),
    "images of unlike length and none": ([6, 0, 3], [4, 1, 5, 2], [2, 1, 0, 2]),
    "texts alone": ([0, 0], [6, 3], None),
    "an image without a text": ([4, 4], [5], [1]),
}
"""Tokens of images and texts, and which image each text reads."""


def kernel(query, key, value, starts, key_starts, longest, longest_key, *, scale, window_size, enable_gqa):
    """One query of one head after another; causality is aligned at the bottom right, as in flash attention."""
    assert starts.dtype == key_starts.dtype == torch.int32 and window_size in ((-1, -1), (-1, 0))
    assert enable_gqa or query.shape[1] == key.shape[1]
    assert starts[-1] == len(query) and key_starts[-1] == len(key) == len(value)
    assert longest == max(starts.diff()) and longest_key == max(key_starts.diff())
    scale, sharing = scale or query.shape[-1] ** -0.5, query.shape[1] // key.shape[1]
    rows = []
    for piece in range(len(starts) - 1):
        queries = query[starts[piece] : starts[piece + 1]]
        keys, values = (states[key_starts[piece] : key_starts[piece + 1]] for states in (key, value))
        for place in range(len(queries)):
            end = len(keys) - len(queries) + place + 1 if window_size == (-1, 0) else len(keys)
            heads = []
            for head in range(query.shape[1]):
                scores = (keys[:end, head // sharing] @ queries[place, head]).float() * scale
                heads.append(scores.softmax(0).to(value.dtype) @ values[:end, head // sharing])
            rows.append(torch.stack(heads))
    return torch.stack(rows)


@pytest.fixture
def pieces(monkeypatch):
    """Let streams attend by the reference, as on a GPU; gives how often they did."""
    calls = []
    monkeypatch.setattr(stream, "takes", lambda query, dropout: calls.append(query.shape) is None)
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    return calls


def mask_of(lengths):
    return torch.arange(max(max(lengths), 1)) < torch.tensor(lengths)[:, None]


def attended(rule, states):
    states = [each.clone().requires_grad_() for each in states]
    seen, _ = stream.attend(torch.nn.Module(), *states, rule, scaling=0.4)
    (seen.float() * torch.linspace(-1, 1, seen.numel()).view(seen.shape)).sum().backward()
    return [seen.detach(), *(each.grad for each in states)]


@pytest.mark.parametrize("keeps_copies", [False, True])
@pytest.mark.parametrize("causal_images", [False, True])
@pytest.mark.parametrize("batch", BATCHES)
def test_pieces_are_the_groups(batch, causal_images, keeps_copies, monkeypatch):
    """Outputs and gradients, in float32 to rounding; queries share keys."""
    image_lengths, text_lengths, index = BATCHES[batch]
    layout = lay_out_stream(
        mask_of(image_lengths),
        mask_of(text_lengths),
        None if index is None else torch.tensor(index),
        keeps_copies=keeps_copies,
        causal_images=causal_images,
    )
    rule = layout.rule.stream
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(1, heads, rule.size, 8, generator=generator) for heads in (4, 2, 2)]
    expected = attended(rule, states)
    monkeypatch.setattr(stream, "takes", lambda query, dropout: True)
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    for found, wanted in zip(attended(rule, states), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("family", ["opt", "llama", "qwen2"])
def test_models_train_alike(family, dtype, allowed, pieces, monkeypatch):
    model, text_encoder = tiny_model(family)
    other = copy.deepcopy(model)
    text = text_encoder.prompts_and_answers(*zip(*TEXTS, strict=True))
    given = {"input_ids": text.input_ids, "attention_mask": text.attention_mask, "labels": text.labels}
    given |= {"pixel_values": pixels(2), "image_index": torch.tensor([1, 0, 1])}
    losses, gradients = [], []
    for each in (model, other):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            losses.append(each(**given, logits="none").loss)
        losses[-1].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in each.parameters() if p.grad is not None]))
        assert len(pieces) == len(model.decoder.blocks())
        monkeypatch.setattr(stream, "takes", lambda query, dropout: False)
    torch.testing.assert_close(*losses, atol=allowed, rtol=allowed)
    assert (gradients[0] - gradients[1]).norm() <= 10 * allowed * gradients[1].norm()


def test_a_stream_says_where_its_pieces_stand():
    layout = lay_out_stream(mask_of([2, 0, 1]), mask_of([1, 2]), torch.tensor([2, 0]))
    found = layout.rule.stream.pieces
    assert (found.longest_image, found.longest_text, found.longest_keys) == (2, 2, 4)
    assert found.image_starts.tolist() == [0, 2, 2, 3] and found.text_starts.tolist() == [0, 1, 3]
    assert found.key_starts.tolist() == [0, 2, 6]
    own = [layout.image_slots[2:].tolist() + layout.text_slots[:1].tolist()]
    own += [layout.image_slots[:2].tolist() + layout.text_slots[1:].tolist()]
    assert found.key_slots.tolist() == sum(own, [])
    behind = torch.cat([found.image_slots, found.text_slots])
    assert behind[found.order].tolist() == list(range(6))


def query_of(kind="cuda", dtype=torch.bfloat16, width=64):
    return SimpleNamespace(device=SimpleNamespace(type=kind), dtype=dtype, shape=(10, 4, width))


@pytest.mark.parametrize(
    ("changes", "dropout"),
    [
        ({"kind": "cpu"}, 0.0),
        ({"dtype": torch.float32}, 0.0),
        ({"width": 512}, 0.0),
        ({"width": 20}, 0.0),
        ({}, 0.1),
    ],
)
def test_all_else_goes_through_sdpa(changes, dropout, monkeypatch):
    monkeypatch.setattr(varlen, "_has_kernel", lambda device: True)
    assert varlen.takes(query_of(), 0.0) and varlen.takes(query_of(dtype=torch.float16, width=128), 0.0)
    assert not varlen.takes(query_of(**changes), dropout)


def test_a_gpu_without_the_kernel_takes_sdpa(monkeypatch):
    monkeypatch.setattr(varlen, "_has_kernel", lambda device: False)
    assert not varlen.takes(query_of(), 0.0)


def test_torch_has_the_kernel_with_these_arguments():
    """Its own shape rule is asked, which every call goes through before a GPU does."""
    assert set(inspect.signature(kernel).parameters) - {"starts", "key_starts", "longest", "longest_key"} <= set(
        inspect.signature(varlen_attn).parameters
    )
    query, key = torch.empty(7, 4, 8, device="meta"), torch.empty(9, 2, 8, device="meta")
    starts = torch.empty(3, dtype=torch.int32, device="meta")
    seen = varlen_attn(query, key, key, starts, starts, 4, 5, scale=0.3, window_size=(-1, 0), enable_gqa=True)
    assert seen.shape == query.shape

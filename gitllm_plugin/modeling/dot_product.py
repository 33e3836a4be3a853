"""Dot-product attention: torch's, and on CPUs in bfloat16 explicit products, which are faster there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

_HIDDEN = -1e30
"""What is added to a hidden score: its weight is 0, and where a query sees nothing there is still a number."""

_SCORES_AT_ONCE = 2**18
"""How many scores, in float32, are computed at once (those of one head at least): they stay in the cache of a core."""


def dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Attend, as ``scaled_dot_product_attention`` does.

    Args:
        query: ``[B, H, Q, D]``.
        key, value: ``[B, G, K, D]``, where H is a multiple of G: neighbouring heads share keys and values.
        causal: aligned at the bottom right, so that the last query sees every key, the one before it one less and so
            on; else all see all, or what ``mask`` says.
        mask: bool ``[B, 1, Q, K]``, true where a query sees a key; ``causal`` is not read then.
        dropout: of attention weights.
        scale: of scores; None: ``1 / sqrt(D)``.

    Returns:
        ``[B, H, Q, D]``.
    """
    causal = causal and mask is None
    if is_faster_in_products(query, key, value, mask, dropout):
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        return cast(Tensor, _Products.apply(query, key, value, mask, causal, scale))
    settings: dict[str, Any] = {"dropout_p": dropout, "scale": scale}
    # A branch, because of compiled shapes the comparison itself may be no bool.
    if query.shape[1] != key.shape[1]:
        settings["enable_gqa"] = True
    num_queries, num_keys = query.shape[2], key.shape[2]
    if causal and num_queries != num_keys:
        # The same for all texts and heads; `is_causal` would align them at the top left.
        mask = torch.ones(num_queries, num_keys, dtype=torch.bool, device=query.device).tril(num_keys - num_queries)
        causal = False
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, **settings)


def is_faster_in_products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> bool:
    """Say whether :func:`dot_product_attention` multiplies by itself, and asks no kernel of torch."""
    # torch's kernel reaches a third of what oneDNN's products do in bfloat16, but as much in float32; GPUs have kernels
    # that beat both. What is compiled or exported should see one operator.
    bf16 = query.dtype == key.dtype == value.dtype == torch.bfloat16
    # A mask of more than the cache holds is read too often.
    short = mask is None or mask.shape[-2:].numel() <= _SCORES_AT_ONCE
    # DeepSeek's values are narrower than its keys.
    alike = query.shape[-1] == key.shape[-1] == value.shape[-1]
    on_cpu = query.device.type == "cpu" and not torch.compiler.is_compiling()
    return on_cpu and bf16 and short and alike and dropout == 0


class _Products(torch.autograd.Function):
    """Attention of bfloat16 in a few heads at a time; scores and weights are made again in the backward pass.

    Scores are products in float32: rounded to bfloat16, those of a sharp head (of 20 and more) would be wrong by a
    tenth. Weights are rounded, as by torch's kernel, when they multiply values.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, mask)
        ctx.causal, ctx.scale = causal, scale
        queries, keys, values = _by_shared_keys(query, key, value)
        seen = torch.empty_like(queries)
        # Autocast would round scores.
        with torch.autocast("cpu", enabled=False):
            for part, hidden in _parts(query, key, mask, causal):
                weights = _weights(queries[part], keys[part], hidden, scale)
                torch.bmm(weights.to(query.dtype), values[part], out=seen[part])
        return seen.view(query.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        query, key, value, mask = ctx.saved_tensors
        queries, keys, values = _by_shared_keys(query, key, value)
        seen_gradient = gradients[0].reshape(queries.shape)
        of_queries, of_keys, of_values = (torch.empty_like(states) for states in (queries, keys, values))
        with torch.autocast("cpu", enabled=False):
            for part, hidden in _parts(query, key, mask, ctx.causal):
                weights = _weights(queries[part], keys[part], hidden, ctx.scale)
                torch.bmm(weights.to(query.dtype).transpose(1, 2), seen_gradient[part], out=of_values[part])
                of_weights = torch.bmm(seen_gradient[part], values[part].transpose(1, 2)).float().mul_(weights)
                # The gradient of a softmax: each row's sum, shared out by the weights, is taken off.
                of_scores = of_weights.addcmul_(weights, of_weights.sum(-1, keepdim=True), value=-1)
                of_scores = of_scores.mul_(ctx.scale).to(query.dtype)
                torch.bmm(of_scores, keys[part], out=of_queries[part])
                torch.bmm(of_scores.transpose(1, 2), queries[part], out=of_keys[part])
        return of_queries.view(query.shape), of_keys.view(key.shape), of_values.view(value.shape), None, None, None


def _by_shared_keys(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Stand queries that share keys in one matrix: ``[B*G, H/G*Q, D]`` and twice ``[B*G, K, D]``, contiguous."""
    keys, values = (states.reshape(-1, *states.shape[2:]) for states in (key, value))
    return query.reshape(len(keys), -1, query.shape[-1]), keys, values


def _parts(query: Tensor, key: Tensor, mask: Tensor | None, causal: bool) -> Iterator[tuple[slice, Tensor | None]]:
    """Give parts of what :func:`_by_shared_keys` gives, with what hides scores when added, ``[1 or n, H/G*Q, K]``."""
    num_queries, num_keys = query.shape[2], key.shape[2]
    num_shared, sharing = key.shape[1], query.shape[1] // key.shape[1]
    count = len(key) * num_shared
    hidden = None
    if causal:
        hidden = torch.full((num_queries, num_keys), _HIDDEN).triu(num_keys - num_queries + 1)
        hidden = hidden.repeat(sharing, 1)[None]
    size = max(1, _SCORES_AT_ONCE // max(1, sharing * num_queries * num_keys))
    for start in range(0, count, size):
        part = slice(start, start + size)
        if mask is not None:
            texts = torch.arange(count)[part] // num_shared
            hidden = (~mask[texts, 0]).float().mul_(_HIDDEN).repeat(1, sharing, 1)
        yield part, hidden


def _weights(queries: Tensor, keys: Tensor, hidden: Tensor | None, scale: float) -> Tensor:
    """Compute attention's weights, float32 ``[n, Q, K]``."""
    scores = torch.bmm(queries.float().mul_(scale), keys.float().transpose(1, 2))
    if hidden is not None:
        scores += hidden
    return scores.softmax(-1)

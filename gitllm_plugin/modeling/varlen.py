"""GIT's attention by kernels for pieces of any lengths, which GPUs have in 16 bits: no padding, no groups of lengths.

All images attend in one call and all texts in another, each text behind its own image::

    image queries   [image 0 | image 1 | ...]               keys    [image 0 | image 1 | ...]
    text queries    [text 0 | text 1 | text 2 | ...]        keys    [its image, text 0 | its image, text 1 | ...]

The kernel's causality is aligned at the bottom right, as that of flash attention, which is GIT's rule for texts.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gitllm_plugin.modeling.copies import made_again

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn: Any = None

_WIDEST_HEAD = 256
_CAPABILITY = (8, 0)
"""What flash attention needs: heads of so many numbers at most, and an Ampere GPU or a newer one."""


@dataclass(frozen=True)
class Pieces:
    """Where the images and texts of a stream stand.

    Attributes:
        image_slots, image_starts: the slots of all image tokens, image after image, long ``[n]``; and where each image
            begins among them, and the last ends, int32 ``[images + 1]``.
        text_slots, text_starts: the same of the texts, long ``[m]`` and int32 ``[N + 1]``.
        key_slots, key_starts: of each text the slots of its image, those it shares with another text, and its own, long
            ``[k]``; int32 ``[N + 1]``.
        order: long ``[n + m]``, where each slot of the stream is found behind one another in ``image_slots`` and
            ``text_slots``.
        longest_image, longest_text, longest_keys: tokens of the longest piece of each.
    """

    image_slots: Tensor
    image_starts: Tensor
    text_slots: Tensor
    text_starts: Tensor
    key_slots: Tensor
    key_starts: Tensor
    order: Tensor
    longest_image: int
    longest_text: int
    longest_keys: int


def takes(query: Tensor, dropout: float) -> bool:
    """Tell whether the kernel computes this: on a GPU that has it, in 16 bits, and without dropout.

    Args:
        query: ``[..., D]``.
        dropout: of attention weights.
    """
    width = query.shape[-1]
    return (
        query.device.type == "cuda"
        and query.dtype in (torch.float16, torch.bfloat16)
        and dropout == 0
        and width <= _WIDEST_HEAD
        and width % 8 == 0
        and _has_kernel(query.device)
    )


@torch.compiler.assume_constant_result  # nothing to trace
def _has_kernel(device: torch.device) -> bool:
    if varlen_attn is None or torch.version.hip:
        return False
    return torch.cuda.get_device_capability(device) >= _CAPABILITY


def attend_in_pieces(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pieces: Pieces,
    *,
    causal_images: bool = False,
    scale: float | None = None,
    keeps_copies: bool = False,
) -> Tensor:
    """Attend by GIT's rule.

    Args:
        query: ``[S, H, D]``, all tokens of a stream.
        key, value: ``[S, G, D]``, where H is a multiple of G.
        pieces: who stands where.
        causal_images: whether image tokens see only those before them.
        scale: of scores; None: ``1 / sqrt(D)``.
        keeps_copies: whether keys and values that stand behind one another are kept for the backward pass.

    Returns:
        ``[S, H, D]``.
    """
    settings: dict[str, Any] = {"scale": scale, "enable_gqa": query.shape[1] != key.shape[1]}
    seen = []
    if pieces.longest_image:
        images = [states.index_select(0, pieces.image_slots) for states in (query, key, value)]
        starts, longest = pieces.image_starts, pieces.longest_image
        window = (-1, 0) if causal_images else (-1, -1)
        given: tuple[Any, ...] = (*images, starts, starts, longest, longest)
        seen.append(varlen_attn(*given, window_size=window, **settings))
    if pieces.longest_text:
        slots = (pieces.text_slots, pieces.key_slots, pieces.key_slots)
        texts = [states.index_select(0, chosen) for states, chosen in zip((query, key, value), slots, strict=True)]
        sources = [states.detach() for states in (query, key, value)]
        again = made_again(texts, lambda kind: sources[kind].index_select(0, slots[kind]))
        given = (*texts, pieces.text_starts, pieces.key_starts, pieces.longest_text, pieces.longest_keys)
        with nullcontext() if keeps_copies else again:
            seen.append(varlen_attn(*given, window_size=(-1, 0), **settings))
    return torch.cat(seen).index_select(0, pieces.order)

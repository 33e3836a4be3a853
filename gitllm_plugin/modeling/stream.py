"""GIT's attention without a mask: all tokens of a batch as one row without padding, regrouped where they attend.

The decoder's linear layers and norms see ``[1, total, D]``: every image once, every text once, nothing else.
Attention alone knows who belongs together.  GIT's rule then needs no mask tensor, because it is two plain cases::

    image queries x the image's keys                    everything is seen
    text queries  x keys of [its image | the text]      causal, aligned at the bottom right

Behind the second, texts are padded to the longest of them.  Padding keys come last and causality hides them;
what padding queries compute is thrown away.  Images of other lengths (several frames, no image)
or with another number of texts attend in a call of their own.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from gitllm_plugin.modeling.copies import made_again
from gitllm_plugin.modeling.dot_product import dot_product_attention, is_faster_in_products
from gitllm_plugin.modeling.varlen import Pieces, attend_in_pieces, takes


@dataclass(frozen=True)
class Group:
    """Images of one length with equally many texts; they stand together in the stream, first images, then texts.

    Attributes:
        image_length: tokens of each image; 0 for texts without one.
        image_tokens, text_tokens: how many slots the images take, and behind them the texts, ordered by image.
        num_texts: how many texts.
        text_length: tokens of the longest one.
        text_places: long ``[text_tokens]``, where each stands in ``[num_texts, text_length]``, flattened.
        borrowed: None, or two of long ``[b]``: where tokens stand that a text has in common with another one, which
            alone has a slot for them; and which of ``text_tokens`` each of them is.
    """

    image_length: int
    image_tokens: int
    text_tokens: int
    num_texts: int
    text_length: int
    text_places: Tensor
    borrowed: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Stream:
    """How the slots of a stream attend; handed to attention in the place of a mask.

    Attributes:
        groups: in the order of the stream; together they are all of it.
        pieces: the same for kernels that take pieces of any lengths.
        keeps_copies: whether what is copied to stand side by side is kept for the backward pass, and not made again.
            Checkpointed and compiled layers decide themselves what they keep.
        causal_images: whether image tokens see only those before them.
    """

    groups: tuple[Group, ...]
    pieces: Pieces
    keeps_copies: bool = False
    causal_images: bool = False

    @property
    def size(self) -> int:
        """Tokens of the whole stream."""
        return sum(group.image_tokens + group.text_tokens for group in self.groups)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Stream | Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend, as a function of transformers' registry: streams by their groups, masks by SDPA or faster.

    Args:
        module: the decoder's attention layer.
        query, key, value: ``[B, H, S, D]``, where keys and values may have fewer heads; B is 1 for a stream.
        attention_mask: a :class:`Stream`, or what SDPA takes.
        dropout: of attention weights.
        scaling: of scores; None: ``1 / sqrt(D)``.
        **kwargs: further arguments of transformers. A sliding window among them is at least as long as any image
            and text together, which is checked before.

    Returns:
        ``[B, S, H, D]``, and None for the weights, which are not kept.
    """
    if not isinstance(attention_mask, Stream):
        if _learns_by_mask_alone(attention_mask, query, key, kwargs):
            states = _of_one_dtype(query, key, value)
            if is_faster_in_products(*states, attention_mask, dropout):
                found = dot_product_attention(*states, mask=attention_mask, scale=scaling)
                return found.transpose(1, 2).contiguous(), None
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    query, key, value = _of_one_dtype(query, key, value)
    keeps_copies = attention_mask.keeps_copies or torch.compiler.is_compiling()
    if takes(query, dropout):
        query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
        ways: dict[str, Any] = {"causal_images": attention_mask.causal_images, "keeps_copies": keeps_copies}
        return attend_in_pieces(query, key, value, attention_mask.pieces, scale=scaling, **ways)[None], None
    settings = {"dropout": dropout, "scale": scaling}
    # One split, whose gradient is one concatenation; a slice's would be a stream of zeros each time.
    sizes = [size for group in attention_mask.groups for size in (group.image_tokens, group.text_tokens)]
    pieces = [states[0].transpose(0, 1).split(sizes) for states in (query, key, value)]
    seen: list[Tensor] = []
    for index, group in enumerate(attention_mask.groups):
        images, texts = ([states[2 * index + kind] for states in pieces] for kind in (0, 1))
        if group.image_tokens:
            seen.append(_attend_in_images(group, images, attention_mask.causal_images, settings))
        if group.text_tokens:
            seen.append(_attend_in_texts(group, images, texts, settings, keeps_copies))
    return torch.cat(seen)[None], None


def _learns_by_mask_alone(mask: Tensor | None, query: Tensor, key: Tensor, settings: dict[str, Any]) -> bool:
    """Say whether a mask, the same for all heads, is all that tells what is seen, in training on a CPU.

    There torch's kernel is slow backwards.
    """
    if query.device.type != "cpu" or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return False
    more = any(settings.get(name) is not None for name in ("position_bias", "softcap", "cache"))
    # Of one that is broadcast, rows cannot be taken.
    whole = (len(query), 1, query.shape[2], key.shape[2])
    return not more and mask is not None and mask.dtype == torch.bool and mask.shape == whole


def _of_one_dtype(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cast queries, keys and values as autocast does for SDPA: rotary positions make float32 of the former two.

    Cast inside, they would be others than those that the backward pass makes again.
    """
    kind = query.device.type
    if query.dtype == key.dtype == value.dtype or not torch.is_autocast_enabled(kind):
        return query, key, value
    dtype = torch.get_autocast_dtype(kind)
    return query.to(dtype), key.to(dtype), value.to(dtype)


def _attend_in_images(group: Group, images: list[Tensor], causal: bool, settings: dict[str, Any]) -> Tensor:
    """Compute what image tokens see, ``[image_tokens, H, D]``, of their queries, keys, values, each of that shape."""
    query, key, value = (_by_image(group, states) for states in images)
    # Without a mask, and by GIT's rule not causal: an image sees all of itself.
    seen = dot_product_attention(query, key, value, causal=causal, **settings)
    return seen.transpose(1, 2).flatten(0, 1)


def _attend_in_texts(
    group: Group, images: list[Tensor], texts: list[Tensor], settings: dict[str, Any], keeps_copies: bool
) -> Tensor:
    """Compute what text tokens see, ``[text_tokens, H, D]``, of queries, keys and values of images and texts."""

    def states_of(kind: int, images: list[Tensor], texts: list[Tensor]) -> Tensor:
        padded = _by_text(group, texts[kind])
        return _behind_images(group, images[kind], padded) if kind and group.image_tokens else padded

    states = [states_of(kind, images, texts) for kind in range(3)]
    sources = [given.detach() for given in images], [given.detach() for given in texts]
    with nullcontext() if keeps_copies else made_again(states, lambda kind: states_of(kind, *sources)):
        query, key, value = states
        seen = dot_product_attention(query, key, value, causal=True, **settings)
    return seen.transpose(1, 2).flatten(0, 1).index_select(0, group.text_places)


def _by_image(group: Group, states: Tensor) -> Tensor:
    """View ``[image_tokens, H, D]`` as ``[images, H, P, D]``."""
    return states.unflatten(0, (-1, group.image_length)).transpose(1, 2)


def _by_text(group: Group, states: Tensor) -> Tensor:
    """Pad ``[text_tokens, H, D]`` to ``[texts, H, T, D]``, with zeros."""
    # Padding comes last, where the causal rule hides it from real tokens; what it computes is not taken back.
    padded = states.new_zeros(group.num_texts * group.text_length, *states.shape[1:])
    padded = padded.index_copy_(0, group.text_places, states)
    if group.borrowed is not None:
        places, sources = group.borrowed
        padded = padded.index_copy_(0, places, states.index_select(0, sources))
    return padded.unflatten(0, (group.num_texts, group.text_length)).transpose(1, 2)


def _behind_images(group: Group, images: Tensor, texts: Tensor) -> Tensor:
    """Join ``[image_tokens, H, D]`` and ``[texts, H, T, D]`` to ``[texts, H, P + T, D]``, texts behind images."""
    images = _by_image(group, images)
    texts = texts.unflatten(0, (len(images), -1))
    images = images[:, None].expand(-1, texts.shape[1], -1, -1, -1)
    return torch.cat([images, texts], 3).flatten(0, 1)

"""A batch as one stream: where each of its tokens stands, and in what groups and pieces they attend."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gitllm_plugin.modeling.attention import PrefixRule
from gitllm_plugin.modeling.beginnings import Beginnings
from gitllm_plugin.modeling.layout import Layout, Places, numbers_of, place
from gitllm_plugin.modeling.marks import Array
from gitllm_plugin.modeling.stream import Group, Stream
from gitllm_plugin.modeling.varlen import Pieces


def lay_out_stream(
    image_valid: Tensor,
    text_valid: Tensor,
    image_index: Tensor | None = None,
    *,
    keeps_copies: bool = False,
    causal_images: bool = False,
    beginnings: Beginnings | None = None,
) -> Layout:
    """Lay out a batch as one row that holds every image once and every text once, and no padding; on the host.

    Args:
        image_valid, text_valid, image_index: as for :func:`lay_out`.
        beginnings: what texts have in common, each with one about its own image; it stands there once. None: nothing.
        keeps_copies, causal_images: see :class:`~gitllm_plugin.modeling.stream.Stream`.

    Returns:
        The layout, R = 1; its rule is a :class:`~gitllm_plugin.modeling.stream.Stream`.
    """
    images, texts, index = numbers_of(image_valid, text_valid, image_index)
    lends = beginnings or Beginnings.none(len(texts))
    assert (index[lends.of] == index).all(), "texts about other images have nothing in common"
    image_lengths, text_lengths = images.sum(1), texts.sum(1) - lends.tokens
    image_start, text_start = np.zeros_like(image_lengths), np.zeros_like(text_lengths)
    num_texts = np.bincount(index, minlength=len(images))
    # Without an image it makes no difference how many texts it has.
    kinds = np.stack([image_lengths, num_texts * (image_lengths > 0)], 1)
    groups: list[Group] = []
    end = 0
    # Images of one length with equally many texts attend in one call, without padding and without a mask.
    for kind in np.unique(kinds, axis=0):
        is_kind = (kinds == kind).all(1)
        of_kind = is_kind.nonzero()[0]
        texts_of_kind = is_kind[index].nonzero()[0]
        # By image, because attention views a group as [images, texts of each].
        texts_of_kind = texts_of_kind[index[texts_of_kind].argsort(kind="stable")]
        lengths = text_lengths[texts_of_kind]
        image_start[of_kind] = end + int(kind[0]) * np.arange(len(of_kind))
        first = end + int(kind[0]) * len(of_kind)
        text_start[texts_of_kind] = first + lengths.cumsum() - lengths
        lent = lends.tokens[texts_of_kind], text_start[lends.of[texts_of_kind]] - first
        group = _group(int(kind[0]), len(of_kind), lengths, *lent)
        end += group.image_tokens + group.text_tokens
        groups.append(group)
    places = Places(image_start, text_start)
    pieces = _pieces(image_lengths, text_lengths, index, places, lends)
    stream = Stream(tuple(groups), pieces, keeps_copies, causal_images)
    rule = PrefixRule(torch.zeros(1, dtype=torch.long), stream=stream)
    return place(images, texts, np.arange(len(images)), index, places, (1, end), rule, beginnings)


def _pieces(image_lengths: Array, text_lengths: Array, index: Array, places: Places, lends: Beginnings) -> Pieces:
    """Say where images and texts stand, each given by its length and its first slot."""
    images = _runs(places.images, image_lengths)
    texts = _runs(places.texts, text_lengths)
    firsts = np.stack([places.images[index], places.texts[lends.of], places.texts], 1).reshape(-1)
    keys = _runs(firsts, np.stack([image_lengths[index], lends.tokens, text_lengths], 1).reshape(-1))
    order = np.empty(len(images) + len(texts), dtype=np.int64)
    order[np.concatenate([images, texts])] = np.arange(len(order))
    key_lengths = image_lengths[index] + lends.tokens + text_lengths
    starts = [
        torch.from_numpy(np.concatenate([[0], lengths.cumsum()]).astype(np.int32))
        for lengths in (image_lengths, text_lengths, key_lengths)
    ]
    slots = [torch.from_numpy(run) for run in (images, texts, keys)]
    longest = [int(lengths.max(initial=0)) for lengths in (image_lengths, text_lengths, key_lengths)]
    pairs: list[Any] = [part for pair in zip(slots, starts, strict=True) for part in pair]
    given: tuple[Any, ...] = (*pairs, torch.from_numpy(order), *longest)
    return Pieces(*given)


def _runs(firsts: Array, lengths: Array) -> Array:
    """Count on from each of ``firsts`` as far as its length, one run behind the other."""
    begins = np.repeat(firsts - (lengths.cumsum() - lengths), lengths)
    return begins + np.arange(len(begins))


def _group(image_length: int, num_images: int, text_lengths: Array, lent: Array, lender: Array) -> Group:
    """Make a group of texts that have slots for ``text_lengths`` tokens, and begin with ``lent`` ones of a lender.

    Args:
        image_length, num_images: of its images.
        text_lengths, lent: ``[texts]``.
        lender: ``[texts]``, at which of the group's text tokens the one begins that each borrows from.
    """
    longest = int((lent + text_lengths).max(initial=0))
    place = np.arange(longest)
    is_lent = place < lent[:, None]
    real = (place < (lent + text_lengths)[:, None]) & ~is_lent
    borrowed = None
    if is_lent.any():
        sources = (lender[:, None] + place)[is_lent]
        borrowed = torch.from_numpy(is_lent.reshape(-1).nonzero()[0]), torch.from_numpy(sources)
    return Group(
        image_length=image_length,
        image_tokens=num_images * image_length,
        text_tokens=int(text_lengths.sum()),
        num_texts=len(text_lengths),
        text_length=longest,
        text_places=torch.from_numpy(real.reshape(-1).nonzero()[0]),
        borrowed=borrowed,
    )

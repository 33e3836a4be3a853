"""Where each token of a batch stands: rows ``[pad | image | text | pad]``, positions, and the way back.

All arithmetic on slots is here, so that training, prefill and cached decoding cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling.attention import PrefixRule
from gitllm_plugin.modeling.stream import Group, Stream
from gitllm_plugin.modeling.tokens import IGNORED

#: Rows are filled up to so many slots: long rows waste few of them on padding, short ones little attention on slots
#: that a token does not see.
ROW = 256


@dataclass(frozen=True)
class Layout:
    """A batch of N texts of up to T tokens about U images of up to P tokens, laid out as R rows of S slots.

    Attributes:
        attention_mask: long ``[R, S]``, 1 on real tokens.
        position_ids: long ``[R, S]``, counted over image and text; a text's positions start behind its image.
        text_position_ids: long ``[R, S]``, counted over each text alone (0 on image slots), for decoders
            whose image tokens have no position.
        image_row, image_slot: long ``[n]``: where the n valid image tokens stand, in order of ``image_valid``.
        image_valid: bool ``[U, P]`` or, where rows repeat images, ``[R, P]``: image tokens that are real.
        text_row, text_slot: long ``[m]``: where the m valid text tokens stand, in order of ``text_valid``.
        text_valid: bool ``[N, T]``, text tokens that are real.
        rule: the attention rule of these rows.
    """

    attention_mask: Tensor
    position_ids: Tensor
    text_position_ids: Tensor
    image_row: Tensor
    image_slot: Tensor
    image_valid: Tensor
    text_row: Tensor
    text_slot: Tensor
    text_valid: Tensor
    rule: PrefixRule

    def place_image(self, rows: Tensor, image_embeds: Tensor) -> Tensor:
        """Write ``image_embeds`` (``[U or R, P, D]``) into their slots of ``rows [R, S, D]``."""
        values = image_embeds[self.image_valid].to(rows.dtype)
        return rows.index_put((self.image_row, self.image_slot), values)

    def place_text(self, rows: Tensor, text_embeds: Tensor) -> Tensor:
        """Write ``text_embeds [N, T, D]`` into their slots of ``rows [R, S, D]``."""
        return rows.index_put((self.text_row, self.text_slot), text_embeds[self.text_valid].to(rows.dtype))

    def text_of(self, rows: Tensor) -> Tensor:
        """Take the way back: ``rows [R, S, ...]`` -> ``[N, T, ...]`` in the caller's layout, zeros on padding."""
        out = rows.new_zeros(*self.text_valid.shape, *rows.shape[2:])
        return out.masked_scatter(
            self.text_valid.view(*self.text_valid.shape, *[1] * (rows.ndim - 2)),
            rows[self.text_row, self.text_slot],
        )

    def supervised(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Find the slots whose logits are trained.

        Args:
            labels: long ``[N, T]``, token ids in the caller's layout, ``-100`` where a token is not trained on.

        Returns:
            The slots, bool ``[R, S]``, n of them True; their targets and the texts that they belong to, long ``[n]``.

        Raises:
            ConfigError: labels of another shape than the texts.
        """
        if labels.shape != self.text_valid.shape:
            raise ConfigError(f"labels have shape {tuple(labels.shape)}, input_ids {tuple(self.text_valid.shape)}")
        # Token t is predicted at token t - 1 of its own text.
        targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
        rows, texts = torch.full_like(self.attention_mask, IGNORED), torch.zeros_like(self.attention_mask)
        rows[self.text_row, self.text_slot] = targets[self.text_valid]
        texts[self.text_row, self.text_slot] = self.text_valid.nonzero()[:, 0]
        keep = rows != IGNORED
        return keep, rows[keep], texts[keep]


def lay_out(
    image_valid: Tensor,
    text_valid: Tensor,
    image_index: Tensor | None = None,
    *,
    share_rows: bool = False,
    align: Literal["left", "right", "blocks"] = "left",
) -> Layout:
    """Lay out a batch.

    Args:
        image_valid: bool ``[U, P]``; P = 0 for a batch without images.
        text_valid: bool ``[N, T]``, the texts' own attention mask, padded on either side.
        image_index: long ``[N]``, the image that each text reads; None: text n reads image n (U = N).
        share_rows: put all texts of one image behind one copy of it, and as many images into a row as fit
            (R <= U); else one row a text (R = N).
        align: "left": padding behind the text (training); "right": all rows end in the same slot, padding in
            front of the image (generation); "blocks": images end in one slot and texts in another, padding in
            front of each (generation behind cached images).

    Returns:
        The layout. But for "blocks", image and text of a row are contiguous, so that position rules computed
        from slots (ALiBi) hold.
    """
    image_valid, text_valid = image_valid.bool(), text_valid.bool()
    if image_index is None:
        image_index = torch.arange(text_valid.shape[0], device=text_valid.device)
    if share_rows:
        assert align == "left", "texts behind a cached image have a row each"
        return _share_rows(image_valid, text_valid, image_index)
    image_rows = image_valid[image_index]
    image_lengths, text_lengths = image_rows.sum(1), text_valid.sum(1)
    if align == "blocks":
        # One end for all images: the cache that they stand in was padded on the left.
        image_end = image_rows.sum(1).max().expand_as(image_lengths)
        text_start = image_end + text_lengths.max() - text_lengths
        size = int(image_end[0] + text_lengths.max())
    else:
        lengths = image_lengths + text_lengths
        size = int(lengths.max())
        image_end = image_lengths + (size - lengths if align == "right" else 0)
        text_start = image_end
    rows = torch.arange(len(text_valid), device=text_valid.device)
    places = _Places(rows, image_end - image_lengths, rows, text_start)
    return _place(image_rows, text_valid, rows, places, (len(rows), size), PrefixRule(prefix_end=image_end))


@dataclass(frozen=True)
class _Places:
    """Where images and texts begin: row and slot of each, long ``[U]``, ``[U]``, ``[N]``, ``[N]``."""

    image_row: Tensor
    image_slot: Tensor
    text_row: Tensor
    text_slot: Tensor


def _share_rows(image_valid: Tensor, text_valid: Tensor, image_index: Tensor) -> Layout:
    """Lay out each image once, its texts behind it, several such groups in a row."""
    device = text_valid.device
    image_lengths, text_lengths = image_valid.sum(1), text_valid.sum(1)
    group_lengths = image_lengths.index_add(0, image_index, text_lengths)
    bins, starts, shape = _fill_rows(group_lengths.tolist())
    image_row, image_slot = torch.tensor(bins, device=device), torch.tensor(starts, device=device)
    # Texts of one image stand one after another in the batch's order.
    before = (image_index[:, None] == image_index[None, :]).tril(-1)
    text_slot = (image_slot + image_lengths)[image_index] + (before * text_lengths[None, :]).sum(1)
    places = _Places(image_row, image_slot, image_row[image_index], text_slot)
    text_ids = torch.full(shape, -1, dtype=torch.long, device=device)
    image_ids = torch.full(shape, -1, dtype=torch.long, device=device)
    rule = PrefixRule(prefix_end=text_ids.new_zeros(shape[0]), shared=(text_ids, image_ids))
    layout = _place(image_valid, text_valid, image_index, places, shape, rule)
    text_ids[layout.text_row, layout.text_slot] = text_valid.nonzero()[:, 0]
    image_ids[layout.text_row, layout.text_slot] = image_index[text_valid.nonzero()[:, 0]]
    image_ids[layout.image_row, layout.image_slot] = image_valid.nonzero()[:, 0]
    return layout


def lay_out_stream(
    image_valid: Tensor, text_valid: Tensor, image_index: Tensor | None = None, *, keeps_copies: bool = False
) -> Layout:
    """Lay out a batch as one row that holds every image once and every text once, and no padding.

    Args:
        image_valid, text_valid, image_index: as for :func:`lay_out`.
        keeps_copies: see :class:`~gitllm_plugin.modeling.stream.Stream`.

    Returns:
        The layout, R = 1; its rule is a :class:`~gitllm_plugin.modeling.stream.Stream`.
    """
    image_valid, text_valid = image_valid.bool(), text_valid.bool()
    device = text_valid.device
    if image_index is None:
        image_index = torch.arange(len(text_valid), device=device)
    image_lengths, text_lengths = image_valid.sum(1), text_valid.sum(1)
    image_slot, text_slot = torch.zeros_like(image_lengths), torch.zeros_like(text_lengths)
    num_texts = torch.zeros_like(image_lengths).index_add(0, image_index, torch.ones_like(image_index))
    # Without an image it makes no difference how many texts it has.
    kinds = torch.stack([image_lengths, num_texts * (image_lengths > 0)], 1)
    groups: list[Group] = []
    end = 0
    # Images of one length with equally many texts attend in one call, without padding and without a mask.
    for kind in kinds.unique(dim=0):
        is_kind = (kinds == kind).all(1)
        images = is_kind.nonzero()[:, 0]
        texts = is_kind[image_index].nonzero()[:, 0]
        # By image, because attention views a group as [images, texts of each].
        texts = texts[image_index[texts].argsort(stable=True)]
        group = _group(int(kind[0]), len(images), text_lengths[texts])
        image_slot[images] = end + group.image_length * torch.arange(len(images), device=device)
        text_slot[texts] = end + group.image_tokens + text_lengths[texts].cumsum(0) - text_lengths[texts]
        end += group.image_tokens + group.text_tokens
        groups.append(group)
    places = _Places(torch.zeros_like(image_slot), image_slot, torch.zeros_like(text_slot), text_slot)
    rule = PrefixRule(prefix_end=image_slot.new_zeros(1), stream=Stream(tuple(groups), keeps_copies))
    return _place(image_valid, text_valid, image_index, places, (1, end), rule)


def _group(image_length: int, num_images: int, text_lengths: Tensor) -> Group:
    num_texts = len(text_lengths)
    longest = int(text_lengths.max()) if num_texts else 0
    real = torch.arange(longest, device=text_lengths.device) < text_lengths[:, None]
    return Group(
        image_length=image_length,
        image_tokens=num_images * image_length,
        text_tokens=int(text_lengths.sum()),
        num_texts=num_texts,
        text_length=longest,
        text_places=real.flatten().nonzero()[:, 0],
        text_rule=causal_lower_right(longest, image_length + longest),
    )


def _fill_rows(lengths: list[int]) -> tuple[list[int], list[int], tuple[int, int]]:
    """Put groups into rows of at most :data:`ROW` slots (or one group): the longest first, each where it fits first.

    Returns:
        The row and the first slot of each group, and the number of rows and slots.
    """
    # First fit, longest first, needs at most about 11/9 of the fewest rows possible, and no search.
    capacity, filled = max(ROW, *lengths), []
    bins, starts = [0] * len(lengths), [0] * len(lengths)
    for group in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        row = next((r for r, used in enumerate(filled) if used + lengths[group] <= capacity), len(filled))
        if row == len(filled):
            filled.append(0)
        bins[group], starts[group] = row, filled[row]
        filled[row] += lengths[group]
    return bins, starts, (len(filled), max(filled))


def _place(
    image_valid: Tensor,
    text_valid: Tensor,
    image_of_text: Tensor,
    places: _Places,
    shape: tuple[int, int],
    rule: PrefixRule,
) -> Layout:
    """Put every token in its slot, counted from where its image or text begins."""
    image_of, image_column = image_valid.nonzero(as_tuple=True)
    image_order = (image_valid.cumsum(1) - 1)[image_of, image_column]
    image_row, image_slot = places.image_row[image_of], places.image_slot[image_of] + image_order

    text_of, text_column = text_valid.nonzero(as_tuple=True)
    text_order = (text_valid.cumsum(1) - 1)[text_of, text_column]
    text_row, text_slot = places.text_row[text_of], places.text_slot[text_of] + text_order

    attention_mask, position_ids, text_position_ids = torch.zeros(
        3, *shape, dtype=torch.long, device=rule.prefix_end.device
    )
    attention_mask[image_row, image_slot] = 1
    attention_mask[text_row, text_slot] = 1
    position_ids[image_row, image_slot] = image_order
    position_ids[text_row, text_slot] = image_valid.sum(1)[image_of_text[text_of]] + text_order
    text_position_ids[text_row, text_slot] = text_order
    return Layout(
        attention_mask=attention_mask,
        position_ids=position_ids,
        text_position_ids=text_position_ids,
        image_row=image_row,
        image_slot=image_slot,
        image_valid=image_valid,
        text_row=text_row,
        text_slot=text_slot,
        text_valid=text_valid,
        rule=rule,
    )

"""Where each token of a batch stands: rows ``[pad | image | text | pad]``, positions, and the way back.

All arithmetic on slots is here, so that training, prefill and cached decoding cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gitllm_plugin.modeling.attention import PrefixRule


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
        """``rows [R, S, D]`` with ``image_embeds`` (``[U or R, P, D]``) written into their slots."""
        values = image_embeds[self.image_valid].to(rows.dtype)
        return rows.index_put((self.image_row, self.image_slot), values)

    def place_text(self, rows: Tensor, text_embeds: Tensor) -> Tensor:
        """``rows [R, S, D]`` with ``text_embeds [N, T, D]`` written into their slots."""
        return rows.index_put((self.text_row, self.text_slot), text_embeds[self.text_valid].to(rows.dtype))

    def text_of(self, rows: Tensor) -> Tensor:
        """The way back: ``rows [R, S, ...]`` -> ``[N, T, ...]`` in the caller's layout, zeros on padding."""
        out = rows.new_zeros(*self.text_valid.shape, *rows.shape[2:])
        return out.masked_scatter(
            self.text_valid.view(*self.text_valid.shape, *[1] * (rows.ndim - 2)),
            rows[self.text_row, self.text_slot],
        )


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
        share_rows: put all texts of one image behind one copy of it, one row an image (R = U); else one row
            a text (R = N).
        align: "left": padding behind the text (training); "right": all rows end in the same slot, padding in
            front of the image (generation); "blocks": images end in one slot and texts in another, padding in
            front of each (generation behind cached images).

    Returns:
        The layout. But for "blocks", image and text of a row are contiguous, so that position rules computed
        from slots (ALiBi) hold.
    """
    device = text_valid.device
    image_valid, text_valid = image_valid.bool(), text_valid.bool()
    if image_index is None:
        image_index = torch.arange(text_valid.shape[0], device=device)
    text_lengths = text_valid.sum(1)
    if share_rows:
        rows_of_text, image_rows = image_index, image_valid
    else:
        rows_of_text = torch.arange(text_valid.shape[0], device=device)
        image_rows = image_valid[image_index]
    num_rows = image_rows.shape[0]
    image_lengths = image_rows.sum(1)
    # Slots of each row's texts, one after another in the batch's order.
    same_row = rows_of_text[:, None] == rows_of_text[None, :]
    text_start = (same_row.tril(-1) * text_lengths[None, :]).sum(1)
    row_lengths = image_lengths.index_add(0, rows_of_text, text_lengths)
    if align == "blocks":
        assert not share_rows, "texts behind a cached image have a row each"
        image_block = image_valid.sum(1).max()
        first_slot = image_block - image_lengths
        text_slot_0 = image_block + text_lengths.max() - text_lengths
        size = int(image_block + text_lengths.max())
    else:
        size = int(row_lengths.max())
        first_slot = size - row_lengths if align == "right" else torch.zeros_like(row_lengths)
        text_slot_0 = (first_slot + image_lengths)[rows_of_text] + text_start

    image_row, image_column = image_rows.nonzero(as_tuple=True)
    image_order = (image_rows.cumsum(1) - 1)[image_row, image_column]
    image_slot = first_slot[image_row] + image_order

    text_of, text_column = text_valid.nonzero(as_tuple=True)
    text_order = (text_valid.cumsum(1) - 1)[text_of, text_column]
    text_row = rows_of_text[text_of]
    text_slot = text_slot_0[text_of] + text_order

    def rows_of(fill: int = 0) -> Tensor:
        return torch.full((num_rows, size), fill, dtype=torch.long, device=device)

    attention_mask, position_ids, text_position_ids, text_ids = rows_of(), rows_of(), rows_of(), rows_of(-1)
    attention_mask[image_row, image_slot] = 1
    attention_mask[text_row, text_slot] = 1
    position_ids[image_row, image_slot] = image_order
    position_ids[text_row, text_slot] = image_lengths[text_row] + text_order
    text_position_ids[text_row, text_slot] = text_order
    text_ids[text_row, text_slot] = text_of
    rule = PrefixRule(prefix_end=first_slot + image_lengths, text_ids=text_ids if share_rows else None)
    return Layout(
        attention_mask=attention_mask,
        position_ids=position_ids,
        text_position_ids=text_position_ids,
        image_row=image_row,
        image_slot=image_slot,
        image_valid=image_rows,
        text_row=text_row,
        text_slot=text_slot,
        text_valid=text_valid,
        rule=rule,
    )

"""Where each token of a batch stands: rows ``[pad | image | text | pad]``, positions, and the way back.

Where texts say where their pictures stand (:mod:`~gitllm_plugin.modeling.marks`), images stand between their tokens.

All arithmetic on slots is here, so that training, prefill and cached decoding cannot disagree. It is done on the host,
from lengths and places that are known there before anything is computed: a layout is index tensors and plain numbers,
is sent to the device once, and nothing of it is read back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from gitllm_plugin.config.model import AttentionKind
from gitllm_plugin.modeling.attention import PrefixRule
from gitllm_plugin.modeling.beginnings import Beginnings
from gitllm_plugin.modeling.marks import Array, Marks, Standing
from gitllm_plugin.modeling.transfer import to_device, to_host

#: Rows are filled up to so many slots: long rows waste few of them on padding, short ones little attention on slots
#: that a token does not see.
ROW = 256


@dataclass(frozen=True)
class Layout:
    """A batch of N texts of up to T tokens about U images of up to P tokens, laid out as R rows of S slots.

    Slots are counted through all rows, ``row * S + slot``, and so are places in ``[U, P]`` and ``[N, T]``.

    Attributes:
        attention_mask: long ``[R, S]``, 1 on real tokens.
        position_ids: long ``[R, S]``, counted over image and text; a text's positions start behind its image.
        text_position_ids: long ``[R, S]``, counted over each text alone (0 on image slots), for decoders
            whose image tokens have no position.
        image_slots, image_places: long ``[n]``: in which slot each real image token stands, and which token of
            ``[U, P]`` it is. Where each text has its own row, images stand there as often as they are read.
        text_slots, text_places: long ``[m]``, the same of the real text tokens, of ``[N, T]``.
        text_lengths: long ``[N]``, real tokens of each text.
        text_shape: N and T.
        longest_row, longest_text: most real tokens of an image with one of its texts, and of a text.
        rule: the attention rule of these rows.
        borrowed_slots, borrowed_places: None, or long ``[b]``: real text tokens that stand in the slot of another text,
            with which theirs begins alike.
        predicting_slots: None, or long ``[m]``: where the token behind each text token is predicted, where that is not
            its own slot because an image stands between them.
    """

    attention_mask: Tensor
    position_ids: Tensor
    text_position_ids: Tensor
    image_slots: Tensor
    image_places: Tensor
    text_slots: Tensor
    text_places: Tensor
    text_lengths: Tensor
    text_shape: tuple[int, int]
    longest_row: int
    longest_text: int
    rule: PrefixRule
    borrowed_slots: Tensor | None = None
    borrowed_places: Tensor | None = None
    predicting_slots: Tensor | None = None

    def to(self, device: torch.device) -> Layout:
        """Give the layout on a device, sent in one copy that nobody waits for."""
        return to_device(self, device)

    def place_image(self, rows: Tensor, image_embeds: Tensor) -> Tensor:
        """Write ``image_embeds [U, P, D]`` into their slots of ``rows [R, S, D]``."""
        return _placed(rows, self.image_slots, image_embeds.flatten(0, 1)[self.image_places])

    def place_text(self, rows: Tensor, text_embeds: Tensor) -> Tensor:
        """Write ``text_embeds [N, T, D]`` into their slots of ``rows [R, S, D]``."""
        return _placed(rows, self.text_slots, text_embeds.flatten(0, 1)[self.text_places])

    def text_of(self, rows: Tensor) -> Tensor:
        """Take the way back: ``rows [R, S, ...]`` -> ``[N, T, ...]`` in the caller's layout, zeros on padding."""
        slots, places = self.read_at()
        texts = rows.flatten(0, 1).index_select(0, slots)
        out = rows.new_zeros(self.text_shape[0] * self.text_shape[1], *rows.shape[2:])
        return out.index_copy(0, places, texts).unflatten(0, self.text_shape)

    def logits_of(self, rows: Tensor) -> Tensor:
        """Do as :meth:`text_of` with what is predicted: that of the token behind an image stands in its last slot."""
        if self.predicting_slots is None:
            return self.text_of(rows)
        return replace(self, text_slots=self.predicting_slots).text_of(rows)

    def read_at(self) -> tuple[Tensor, Tensor]:
        """Give the slots and places of all real text tokens, borrowed ones too, of which several have one slot."""
        if self.borrowed_slots is None or self.borrowed_places is None:
            return self.text_slots, self.text_places
        return (
            torch.cat([self.text_slots, self.borrowed_slots]),
            torch.cat([self.text_places, self.borrowed_places]),
        )

    def image_of(self, rows: Tensor) -> Tensor:
        """Take ``rows [R, S, ...]`` at the n real image tokens: ``[n, ...]``."""
        return rows.flatten(0, 1).index_select(0, self.image_slots)


def lay_out(
    image_valid: Tensor,
    text_valid: Tensor,
    image_index: Tensor | None = None,
    *,
    share_rows: bool = False,
    align: Literal["left", "right", "blocks"] = "left",
    attention: AttentionKind = "git",
    prompt_lengths: Tensor | None = None,
    marks: Marks | None = None,
) -> Layout:
    """Lay out a batch, on the host.

    Args:
        image_valid: bool ``[U, P]``; P = 0 for a batch without images. This and the others are best on the host; what
            is on a device is read from there, in one transfer.
        text_valid: bool ``[N, T]``, the texts' own attention mask, padded on either side.
        image_index: long ``[N]``, the image that each text reads; None: text n reads image n (U = N).
        share_rows: put all texts of one image behind one copy of it, and as many images into a row as fit
            (R <= U); else one row a text (R = N).
        align: "left": padding behind the text (training); "right": all rows end in the same slot, padding in
            front of the image (generation); "blocks": images end in one slot and texts in another, padding in
            front of each (generation behind cached images).
        attention: what image tokens see. By "prompt" rows are not shared, and images not cached alone.
        prompt_lengths: long ``[N]``, how many tokens of each text belong to the prefix, by "prompt"; None: all.
        marks: where in their texts images stand, which have a row each then; None: in front.

    Returns:
        The layout, on the CPU. But for "blocks", image and text of a row are contiguous, so that position rules
        computed from slots (ALiBi) hold.
    """
    images, texts, index = numbers_of(image_valid, text_valid, image_index)
    if share_rows:
        assert align == "left", "texts behind a cached image have a row each"
        assert attention != "prompt", "an image that sees a prompt has a row with it"
        return _share_rows(images, texts, index, attention == "causal")
    text_lengths = texts.sum(1)
    standing = None if marks is None else marks.standing(images, index, text_lengths)
    image_lengths = images.sum(1)[index] if standing is None else standing.shown.sum(1)
    if align == "blocks":
        assert standing is None, "an image between texts is not cached alone"
        # One end for all images: the cache that they stand in was padded on the left.
        image_end = np.full_like(image_lengths, image_lengths.max())
        text_start = image_end + text_lengths.max() - text_lengths
        size = int(image_end[0] + text_lengths.max())
    else:
        lengths = image_lengths + text_lengths
        size = int(lengths.max())
        image_end = image_lengths + (size - lengths if align == "right" else 0)
        text_start = image_end
    prefix_end = np.zeros_like(image_end) if attention == "causal" else image_end
    if attention == "prompt":
        assert align != "blocks", "an image that sees a prompt is not cached without it"
        prefix_end = text_start + (text_lengths if prompt_lengths is None else prompt_lengths.numpy())
    elif attention == "git" and standing is not None:
        prefix_end = standing.ends(image_end - image_lengths, size)
    rows = np.arange(len(texts))
    places = Places(rows * size + image_end - image_lengths, rows * size + text_start)
    rule = PrefixRule(torch.from_numpy(prefix_end))
    return place(images, texts, index, index, places, (len(rows), size), rule, standing=standing)


@dataclass(frozen=True)
class Places:
    """The slots, counted through all rows, in which images and texts begin; a text behind what it borrows.

    Of images that stand in their texts, as if they stood in front of them.
    """

    images: Array
    texts: Array


def numbers_of(image_valid: Tensor, text_valid: Tensor, image_index: Tensor | None) -> tuple[Array, Array, Array]:
    """Give masks and numbers on the host, as arrays."""
    image_valid, text_valid, image_index = to_host(image_valid, text_valid, image_index)
    index = np.arange(len(text_valid)) if image_index is None else image_index.numpy()
    return image_valid.numpy().astype(bool), text_valid.numpy().astype(bool), index


def _share_rows(images: Array, texts: Array, index: Array, causal_images: bool) -> Layout:
    """Lay out each image once, its texts behind it, several such groups in a row."""
    image_lengths, text_lengths = images.sum(1), texts.sum(1)
    group_lengths = image_lengths.copy()
    np.add.at(group_lengths, index, text_lengths)
    bins, starts, shape = _fill_rows(group_lengths.tolist())
    image_start = np.array(bins) * shape[1] + np.array(starts)
    # Texts of one image stand one after another in the batch's order.
    before = np.tril(index[:, None] == index[None, :], -1)
    text_start = (image_start + image_lengths)[index] + (before * text_lengths[None, :]).sum(1)
    text_ids, image_ids = (torch.full(shape, -1) for _ in range(2))
    no_prefix = torch.zeros(shape[0], dtype=torch.long)
    rule = PrefixRule(no_prefix, shared=(text_ids, image_ids), causal_images=causal_images)
    layout = place(images, texts, np.arange(len(images)), index, Places(image_start, text_start), shape, rule)
    # Written through the arrays' memory, which the tensors share.
    text_slots, image_slots = layout.text_slots.numpy(), layout.image_slots.numpy()
    text_ids.numpy().reshape(-1)[text_slots] = texts.nonzero()[0]
    image_ids.numpy().reshape(-1)[text_slots] = index[texts.nonzero()[0]]
    image_ids.numpy().reshape(-1)[image_slots] = images.nonzero()[0]
    return layout


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


def place(
    images: Array,
    texts: Array,
    shown: Array,
    index: Array,
    places: Places,
    shape: tuple[int, int],
    rule: PrefixRule,
    beginnings: Beginnings | None = None,
    standing: Standing | None = None,
) -> Layout:
    """Put every token in its slot, counted from where its image or text begins.

    Args:
        images, texts: which tokens are real, bool ``[U, P]`` and ``[N, T]``.
        shown: which of the U images stand in the rows, in the order of ``places.images``.
        index: which image each text reads.
        places: where they begin.
        shape: rows and slots.
        rule: theirs.
        beginnings: which tokens stand in the slots of other texts.
        standing: where in their texts images stand; None: in front.
    """
    real = images[shown] if standing is None else standing.shown
    image_of, image_column = real.nonzero()
    image_order = (real.cumsum(1) - 1)[image_of, image_column]
    text_of, text_column = texts.nonzero()
    text_order = (texts.cumsum(1) - 1)[text_of, text_column]
    text_lengths = texts.sum(1)
    image_lengths = images.sum(1)[index] if standing is None else real.sum(1)
    # Text tokens in front of an image token, and image tokens behind a text token and right behind it.
    in_front: Any = 0 if standing is None else standing.before[image_of, image_column]
    up_to: Any = image_lengths[text_of] if standing is None else standing.up_to[text_of, text_order]
    image_slots = places.images[image_of] + image_order + in_front
    text_slots = places.texts[text_of] + text_order - image_lengths[text_of] + up_to
    own = np.ones(len(text_of), bool)
    if beginnings is not None:
        own = text_order >= beginnings.tokens[text_of]
        lender = places.texts[beginnings.of[text_of]] + text_order
        text_slots = np.where(own, text_slots - beginnings.tokens[text_of], lender)

    # Of an image nobody reads its place in the text, but where a prompt ends with one the answer's are counted on.
    of_images = image_slots, image_order + in_front, np.maximum(in_front - 1, 0)
    numbers = _numbered(shape, of_images, (text_slots, up_to + text_order, text_order))
    numbers += (image_slots, shown[image_of] * images.shape[1] + image_column)
    text_places = text_of * texts.shape[1] + text_column
    numbers += (text_slots[own], text_places[own], text_lengths)
    borrowed = (None, None) if own.all() else (text_slots[~own], text_places[~own])
    borrowed_slots, borrowed_places = (None if part is None else torch.from_numpy(part) for part in borrowed)
    predicting = None if standing is None else text_slots + standing.counts[text_of, text_order + 1]
    return Layout(
        *map(torch.from_numpy, numbers),
        text_shape=(texts.shape[0], texts.shape[1]),
        longest_row=int(max((image_lengths + text_lengths).max(initial=0), real.sum(1).max(initial=0))),
        longest_text=int(text_lengths.max(initial=0)),
        rule=rule,
        borrowed_slots=borrowed_slots,
        borrowed_places=borrowed_places,
        predicting_slots=None if predicting is None else torch.from_numpy(predicting),
    )


def _numbered(shape: tuple[int, int], *kinds: tuple[Array, Array, Array]) -> tuple[Array, ...]:
    """Make mask, positions, and positions in the text alone, of slots and both positions of each kind of token."""
    found = np.zeros((3, shape[0] * shape[1]), dtype=np.int64)
    for slots, positions, in_text in kinds:
        found[0, slots], found[1, slots], found[2, slots] = 1, positions, in_text
    return tuple(found.reshape(3, *shape))


def _placed(rows: Tensor, slots: Tensor, values: Tensor) -> Tensor:
    # Not through a flat view: layers are compiled once more for an input that is a view.
    size = rows.shape[1]
    return rows.index_put((slots // size, slots % size), values.to(rows.dtype))

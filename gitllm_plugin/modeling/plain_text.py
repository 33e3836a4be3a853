"""Texts to token ids where nothing that stands in a text is a special token.

Tokenizers read ``</s>`` in a text as their end token, whoever wrote it. Here a text is a sequence of pieces: strings,
in which it is five letters, and special tokens, given by their ids, of which alone there come any::

    ("<s>[INST] what does </s> mean? [/INST] a stroke",)              no special token
    (1, "[INST] what does </s> mean? [/INST] a stroke")               one, in front

The ids are those of the whole text, as the tokenizer itself gives them. It is not cut at special tokens by hand,
because tokenizers treat the beginning of a text in ways of their own.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any, cast

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

Pieces = tuple[str | int, ...]
"""A text: strings, and ids of special tokens."""

IMAGE = -1
"""A piece that is a picture: in the ids it stands where the picture does, and becomes none of them."""

_MARKS = 0x100000
"""The first of the characters (private use) that stand for special tokens in what a tokenizer is given."""


class PlainText:
    """A tokenizer that reads strings as strings.

    Args:
        tokenizer: not changed; what encodes is a copy.
        ends: ids of further tokens that are to be special, beside those that the tokenizer calls so.

    Attributes:
        special: the special tokens as they are written, and their ids.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: Collection[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.ends = tuple(ends)
        added = tokenizer.added_tokens_decoder
        self.special: dict[str, int] = {
            token.content: number
            for number, token in added.items()
            if token.special or number in self.ends or token.content in tokenizer.all_special_tokens
        }

    def __reduce__(self) -> Any:
        # Copies of the tokenizer lose, when they are pickled, that they read special tokens as text.
        return PlainText, (self.tokenizer, self.ends)

    def encode(self, texts: Sequence[Pieces]) -> list[list[int]]:
        """Encode whole texts, without what the tokenizer puts around every text."""
        if not isinstance(self.tokenizer, PreTrainedTokenizerFast):
            return [self._in_parts(text) for text in texts]
        # Who writes the marks themselves gets a tokenizer that knows none, and special tokens are cut at by hand there.
        whole = [n for n, text in enumerate(texts) if not _has_marks(text)]
        found: dict[int, list[int]] = {}
        for shows in (False, True):
            some = [n for n in whole if (IMAGE in texts[n]) == shows]
            if some:
                strings = ["".join(p if isinstance(p, str) else self._marks[p] for p in texts[n]) for n in some]
                found.update(zip(some, (self._shown if shows else self._marked).encode(strings), strict=True))
        return [found[n] if n in found else self._in_parts(text) for n, text in enumerate(texts)]

    def most_tokens(self, text: Pieces) -> int | None:
        """Give a number that :meth:`encode` surely does not exceed, without encoding; None: none is known."""
        if not isinstance(self.tokenizer, PreTrainedTokenizerFast):
            return None
        normalizer = self.tokenizer.backend_tokenizer.normalizer
        strings = _unicode("".join(piece for piece in text if isinstance(piece, str)))
        if normalizer is not None:
            strings = normalizer.normalize_str(strings)
        # A token holds a byte at least; beside those of the text there may be spaces of the tokenizer's own.
        return 2 * len(strings.encode()) + 2 * len(text) + 2

    @cached_property
    def around(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts in front of every text, and behind it."""
        inner = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        outer = self.tokenizer("a")["input_ids"]
        for start in range(len(outer) - len(inner) + 1):
            if outer[start : start + len(inner)] == inner:
                return outer[:start], outer[start + len(inner) :]
        return [], []

    @cached_property
    def _marks(self) -> dict[int, str]:
        return {number: chr(_MARKS + place) for place, number in enumerate([*self.special.values(), IMAGE])}

    @cached_property
    def _bare(self) -> _Backend:
        return _Backend(self.tokenizer, self.special, {})

    @cached_property
    def _marked(self) -> _Backend:
        return _Backend(self.tokenizer, self.special, {n: mark for n, mark in self._marks.items() if n != IMAGE})

    @cached_property
    def _shown(self) -> _Backend:
        # Apart, because of its ids some are changed, which takes time.
        return _Backend(self.tokenizer, self.special, self._marks)

    def _in_parts(self, text: Pieces) -> list[int]:
        ids: list[int] = []
        for piece in text:
            if isinstance(piece, int):
                ids.append(piece)
            elif isinstance(self.tokenizer, PreTrainedTokenizerFast):
                ids += self._bare.encode([piece])[0]
            elif piece:
                ids += self.tokenizer(piece, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids


def count_tokens(ids: Sequence[int]) -> int:
    """Count tokens, of which pictures are none."""
    return len(ids) - ids.count(IMAGE)


def joined(text: Pieces, more: str) -> Pieces:
    """Write more behind a text, as a part of its last string."""
    last = text[-1] if text else 0
    return (*text[:-1], last + more) if isinstance(last, str) else (*text, more)


def last_word(text: Pieces) -> Pieces:
    """Give the last word of a text, line breaks behind it included, or the special token at its end."""
    last = text[-1] if text else ""
    if isinstance(last, int):
        return (last,)
    words = last.rstrip()
    start = max(words.rfind(" "), words.rfind("\n")) + 1
    return (last[start:],) if words or len(text) == 1 else text[-2:]


def _has_marks(text: Pieces) -> bool:
    """Tell whether somebody wrote one of the characters that are marks here."""
    return any(isinstance(p, str) and not p.isascii() and max(p) >= chr(_MARKS) for p in text)


class _Backend:
    """A copy of a fast tokenizer to which special tokens are text, and ``marks`` are special tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, special: dict[str, int], marks: dict[int, str]) -> None:
        content = json.loads(cast(PreTrainedTokenizerFast, tokenizer).backend_tokenizer.to_str())
        content |= {"post_processor": None, "truncation": None, "padding": None, "decoder": None}
        for token in content["added_tokens"]:
            token["special"] = token["content"] in special
        _hide(content["model"], special)
        self.backend = Tokenizer.from_str(json.dumps(content))
        self.backend.encode_special_tokens = True
        flags = cast(Any, tokenizer).added_tokens_decoder
        plain = AddedToken(normalized=False, special=False)
        self.backend.add_tokens([_like(flags.get(number, plain), mark) for number, mark in marks.items()])
        # Tokens that are hidden are not in the copy's vocabulary, which moves the numbers of those behind it.
        true = {token["content"]: token["id"] for token in content["added_tokens"]}
        true |= {mark: number for number, mark in marks.items()}
        numbers = {cast(int, self.backend.token_to_id(written)): number for written, number in true.items()}
        self.moved = {own: number for own, number in numbers.items() if own != number}

    def encode(self, texts: list[str]) -> list[list[int]]:
        encoded = self.backend.encode_batch_fast(list(map(_unicode, texts)), add_special_tokens=False)
        found = [encoding.ids for encoding in encoded]
        if not self.moved:
            return found
        return [[self.moved.get(number, number) for number in ids] for ids in found]


def _like(token: AddedToken, mark: str) -> AddedToken:
    """Make a token that takes the white space beside it as another one does."""
    return AddedToken(
        mark,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        single_word=token.single_word,
        # Normalizers may know no such character; and special tokens are written as they are.
        normalized=False,
        special=False,
    )


def _unicode(text: str) -> str:
    """Replace what is no Unicode, halves of surrogate pairs, which tokenizers do not take."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _hide(model: dict[str, Any], special: dict[str, int]) -> None:
    """Rename special tokens, in place, where the model itself would find them in a text as it finds words."""
    if model["type"] == "BPE" and not model.get("ignore_merges"):
        return  # made of pairs, of which special tokens are none
    merged = {"".join(pair) if isinstance(pair, list) else pair.replace(" ", "") for pair in model.get("merges", [])}
    # A single character is needed as itself.
    names = {written: f"{written}\uffff\ufffe{number}" for written, number in special.items()}
    names = {written: name for written, name in names.items() if len(written) > 1 and written not in merged}
    if model["type"] == "Unigram":
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    else:
        model["vocab"] = {names.get(piece, piece): number for piece, number in model["vocab"].items()}
        if model.get("unk_token") is not None:
            model["unk_token"] = names.get(model["unk_token"], model["unk_token"])

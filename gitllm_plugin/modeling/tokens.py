"""Prompts and answers to token ids and labels; the same ids for a prompt in training and at inference.

The ids of prompt and answer are those of the whole text, as the tokenizer sees it::

    text     ##Question: is it red? ##Answer: yes
    stem     ##Question: is it red? ##Answer:           what is given at inference
    joint                                    " "        white space in front of an answer goes with the answer

A prompt may know what was said before it (``turns``, pairs of a prompt and an answer): that stands in front of it, each
answer with its end token, and is neither trained on nor shortened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from os.path import commonprefix
from typing import Any, Literal, cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gitllm_plugin.config.model import IMAGE_MARK, ImagePlaces
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling.conversation import Conversation, Turn, Turns, find_turn, turns_of, with_pictures
from gitllm_plugin.modeling.fitting import Part, TooLongError, place_of, shorten, without
from gitllm_plugin.modeling.plain_text import IMAGE, Pieces, PlainText, count_tokens, joined, last_word

IGNORED = -100

_LINE_BREAKS = "\n\r"


@dataclass(frozen=True)
class TextBatch:
    """Token ids of a batch of N texts.

    Attributes:
        input_ids: long ``[N, T]``.
        attention_mask: long ``[N, T]``, 1 on real tokens; padding is on the right.
        labels: long ``[N, T]``, ``-100`` where a token is not trained on; None for prompts alone.
        truncated: places of the prompts that lost an end of their question to fit.
        marks: of each text, how many tokens stand in front of each picture that stands in it; none, of each: none does.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor | None = None
    truncated: tuple[int, ...] = ()
    marks: tuple[tuple[int, ...], ...] = ()

    @property
    def num_truncated(self) -> int:
        """How many prompts were cut."""
        return len(self.truncated)


@dataclass(frozen=True)
class _Head:
    """What stands in front of an answer: the prompt without white space at its end, and that white space."""

    stem: Pieces
    joint: str

    def before(self, answer: str) -> Pieces:
        """Give the whole text."""
        return joined(self.stem, self.joint + answer) if answer else self.stem


@dataclass(frozen=True)
class TextEncoder:
    """Turns prompts and answers into a :class:`TextBatch`. What they are made of is text: ``</s>`` in one ends nothing.

    Attributes:
        tokenizer: the language model's own tokenizer; its special tokens in front of a text (BOS) are kept.
        loss_on: "answer": answer and end token are trained on; "all": every text token (the article's).
        chat_template: None, or the Jinja template of a conversation: a prompt is then what the user says in it, and
            the answer what the assistant does.
        end_tokens: ids with which the language model may end an answer, beside the tokenizer's end token and the
            template's: those of its generation config.
        image_places: "text": ``<image>`` in a prompt, or in one before it, is a picture, and no token; "front": it is
            text.
    """

    tokenizer: PreTrainedTokenizerBase
    loss_on: Literal["answer", "all"] = "answer"
    chat_template: str | None = None
    end_tokens: tuple[int, ...] = ()
    image_places: ImagePlaces = "front"

    def __post_init__(self) -> None:
        if self.loss_on not in ("answer", "all"):
            raise ConfigError(f"loss_on is {self.loss_on!r}; it may be 'answer' or 'all'")
        if self.image_places not in ("front", "text"):
            raise ConfigError(f"image_places is {self.image_places!r}; it may be 'front' or 'text'")
        if not self.ends:
            raise ConfigError(
                "neither the tokenizer nor the language model's generation config has an end token, so that no answer "
                "would end: set tokenizer.eos_token to one of its tokens (eos_token in tokenizer_config.json), or "
                "eos_token_id in generation_config.json"
            )

    @cached_property
    def ends(self) -> list[int]:
        """All tokens that end an answer; the first is the one that is trained on."""
        own = [self._turn.end, cast("int | None", self.tokenizer.eos_token_id), *self.end_tokens]
        return list(dict.fromkeys(token for token in own if token is not None))

    @property
    def special_tokens(self) -> dict[str, Any]:
        """End tokens and padding token for generation, those of training among them."""
        pad = cast("int | None", self.tokenizer.pad_token_id)
        return {"eos_token_id": self.ends, "pad_token_id": self.ends[0] if pad is None else pad}

    def prompts(
        self,
        prompts: Sequence[str],
        questions: Sequence[Part | None] | None = None,
        max_tokens: int | Sequence[int] | None = None,
    ) -> TextBatch:
        """Encode prompts for generation.

        Args:
            prompts: N texts.
            questions: the part of each prompt that may be shortened, as a text or a place in it; None where it is not
                known, see :func:`~gitllm_plugin.modeling.fitting.place_of`.
            max_tokens: most tokens of a prompt, the same for all or of each; None: as many as it has.

        Raises:
            TooLongError: a prompt is too long even without its question.
        """
        ids = self._prompt_ids([self._head(prompt) for prompt in prompts])
        most = _of_each(max_tokens, len(prompts))
        long = [n for n, row in enumerate(ids) if most is not None and count_tokens(row) > most[n]]

        for n in long:
            turns = turns_of(prompts[n])

            def encode(prompt: str, turns: Turns = turns) -> list[int]:
                return self._prompt_ids([self._head(prompt, turns)])[0]

            ids[n] = encode(self._shortened(n, prompts[n], questions, cast(Any, most)[n], encode))
        return self._pad(ids, None, long)

    def prompts_and_answers(
        self,
        prompts: Sequence[str],
        answers: Sequence[str],
        questions: Sequence[Part | None] | None = None,
        max_tokens: int | Sequence[int] | None = None,
    ) -> TextBatch:
        """Encode prompts followed by " answer" and the end token, with labels.

        Args:
            prompts: N texts; no space is added behind one that ends in white space.
            answers: N texts, never shortened.
            questions, max_tokens: as for :meth:`prompts`; the bound is on prompt and answer together.

        Raises:
            TooLongError: prompt and answer are too long even without the question.
        """
        texts = self._whole_ids([self._head(prompt) for prompt in prompts], answers)
        most = _of_each(max_tokens, len(prompts))
        long = [n for n, (ids, _) in enumerate(texts) if most is not None and count_tokens(ids) > most[n]]
        for n in long:
            turns = turns_of(prompts[n])

            def encode(prompt: str, answer: str = answers[n], turns: Turns = turns) -> list[int]:
                return self._whole_ids([self._head(prompt, turns)], [answer])[0][0]

            prompt = self._shortened(n, prompts[n], questions, cast(Any, most)[n], encode, of_both=True)
            texts[n] = self._whole_ids([self._head(prompt, turns)], [answers[n]])[0]
        ignored = 0 if self.loss_on == "all" else 1
        labels = [[IGNORED] * (start * ignored) + ids[start * ignored :] for ids, start in texts]
        return self._pad([ids for ids, _ in texts], labels, long)

    def shortened(self, prompt: str, question: Part | None = None, max_tokens: int | None = None) -> str:
        """Give the text of a prompt as :meth:`prompts` encodes it.

        Raises:
            TooLongError: it is too long even without its question.
        """

        def encode(text: str) -> list[int]:
            return self._prompt_ids([self._head(text, turns_of(prompt))])[0]

        if max_tokens is None or count_tokens(encode(prompt)) <= max_tokens:
            return prompt
        return self._shortened(0, prompt, [question], max_tokens, encode)

    def least_tokens(
        self, prompt: str, answer: str | None = None, question: Part | None = None, enough: int | None = None
    ) -> int:
        """Count the tokens that a prompt takes when all of its question is left out, answer and end token included.

        Args:
            prompt, answer, question: as for :meth:`prompts_and_answers`; without an answer of the prompt alone.
            enough: a text that surely takes no more than so many tokens is not encoded, and ``enough`` is given.
        """
        head = self._head(without(prompt, self._place_of(prompt, question)), turns_of(prompt))
        if enough is not None:
            most = self._plain.most_tokens(head.before((answer or "").strip()))
            if most is not None and most + len(self._plain.around[0]) + 2 <= enough:
                return enough
        if answer is None:
            return count_tokens(self._prompt_ids([head])[0])
        return count_tokens(self._whole_ids([head], [answer])[0][0])

    def candidates(
        self, prompts: Sequence[str], candidates: Sequence[Sequence[str]], end: bool = True
    ) -> list[list[list[int]]]:
        """Encode answers as they follow prompts.

        Args:
            prompts: N texts.
            candidates: N lists of answers; the same list for several prompts is encoded once where that is the same.
            end: whether the end token, which closes an answer, belongs to it.
        """
        heads = [self._head(prompt) for prompt in prompts]
        known: dict[int, list[list[int]]] = {}
        found = []
        for head, stem, answers in zip(heads, self._stable(heads), candidates, strict=True):
            texts = [answer.strip() for answer in answers]
            if id(answers) not in known:
                # The last word is enough in front of them: what stands before it would only be encoded again.
                tail = _Head(last_word(head.stem), head.joint)
                known[id(answers)] = self._behind(tail, self._stable([tail])[0], texts)
            ids = known[id(answers)]
            some = sorted({0, len(texts) // 2, len(texts) - 1}) if texts else []
            if self._behind(head, stem, [texts[n] for n in some]) != [ids[n] for n in some]:
                ids = self._behind(head, stem, texts)
            found.append([[*answer, self.ends[0]] for answer in ids] if end else [list(answer) for answer in ids])
        return found

    def decode(self, token_ids: Tensor) -> list[str]:
        """Turn generated ids ``[N, L]`` into answers, without special tokens and outer white space."""
        ends = set(self.ends)
        kept = [[number for number in row if number not in ends] for row in token_ids.tolist()]
        # Left as they are: some tokenizers would take the spaces before punctuation away.
        texts = self.tokenizer.batch_decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return [text.strip() for text in texts]

    @property
    def _mark(self) -> str | None:
        return IMAGE_MARK if self.image_places == "text" else None

    @cached_property
    def _turn(self) -> Turn:
        return Turn(None, None) if self.chat_template is None else find_turn(self.tokenizer, self.chat_template)

    @cached_property
    def _plain(self) -> PlainText:
        return PlainText(self.tokenizer, self.ends)

    @cached_property
    def _conversation(self) -> Conversation | None:
        if self.chat_template is None:
            return None
        return Conversation(self.tokenizer, self.chat_template, self._plain.special)

    def _head(self, prompt: str, turns: Turns | None = None) -> _Head:
        turns = turns_of(prompt) if turns is None else turns
        if self._conversation is not None:
            text = self._conversation.ask(prompt, turns, self._mark is not None)
        else:
            before = [(*self._head(asked, ()).before(answer.strip()), self.ends[0]) for asked, answer in turns]
            text = (*sum(before, ()), *(with_pictures(prompt, self._mark) or ("",)))
        last = text[-1] if text and isinstance(text[-1], str) else ""
        # Where line breaks end a prompt, the answer is a line of its own, as in many conversations; all other white
        # space is a part of the word behind it in most vocabularies.
        kept = len(last)
        while kept and last[kept - 1].isspace() and last[kept - 1] not in _LINE_BREAKS:
            kept -= 1
        stem = (*text[:-1], last[:kept]) if kept < len(last) else text
        space = self._turn.space
        if space is None:
            space = "" if last[-1:].isspace() else " "
        return _Head(stem, last[kept:] + space)

    def _beginning(self, stem: list[int]) -> list[int]:
        """Give what stands in front of a text whose prompt has these ids."""
        begin, _ = self._plain.around
        # Many conversation templates write the special token in front of a text themselves.
        if self._conversation is not None and stem[: len(begin)] == begin:
            begin = []
        if begin or count_tokens(stem):
            return begin
        # Something must stand before an answer: its first token is not predicted from the image.
        start = cast("int | None", self.tokenizer.bos_token_id)
        return [self.ends[0] if start is None else start]

    def _prompt_ids(self, heads: Sequence[_Head]) -> list[list[int]]:
        return [[*self._beginning(ids), *ids] for ids in self._stable(heads)]

    def _stable(self, heads: Sequence[_Head]) -> list[list[int]]:
        """Encode prompts as far as their ids are the same whatever answer follows."""
        found = self._plain.encode([head.stem for head in heads])
        return [self._as_far_as_stable(head, ids) for head, ids in zip(heads, found, strict=True)]

    def _as_far_as_stable(self, head: _Head, stem: list[int]) -> list[int]:
        # Behind anything but line breaks the answer begins with a space, and tokenizers divide texts there.
        if head.joint or not head.stem or not str(head.stem[-1]).endswith(tuple(_LINE_BREAKS)):
            return stem
        letter, digit = self._plain.encode([head.before("a"), head.before("1")])
        return stem if letter[: len(stem)] == stem else list(commonprefix([letter, digit]))

    def _whole_ids(self, heads: Sequence[_Head], answers: Sequence[str]) -> list[tuple[list[int], int]]:
        """Encode whole texts with end token; gives, with each, how many of its tokens are the prompt's."""
        texts = [head.before(answer.strip()) for head, answer in zip(heads, answers, strict=True)]
        encoded = self._plain.encode([*(head.stem for head in heads), *texts])
        found = []
        for head, stem, ids in zip(heads, encoded, encoded[len(heads) :], strict=False):
            begin = self._beginning(stem)
            if ids[: len(stem)] != stem:
                stem = list(commonprefix([self._as_far_as_stable(head, stem), ids]))
            elif len(ids) == len(stem):
                ids = stem = self._as_far_as_stable(head, stem)
            found.append(([*begin, *ids, self.ends[0]], len(begin) + len(stem)))
        return found

    def _behind(self, head: _Head, stem: list[int], answers: Sequence[str]) -> list[list[int]]:
        """Encode answers, without end token, as they follow the prompt whose ids are ``stem``."""
        encoded = self._plain.encode([head.before(answer) for answer in answers])
        return [
            # What joins the prompt's last word to one token has no ids of its own.
            ids[len(stem) :] if ids[: len(stem)] == stem else self._plain.encode([(head.joint + answer,)])[0]
            for ids, answer in zip(encoded, answers, strict=True)
        ]

    def _shortened(
        self,
        row: int,
        prompt: str,
        questions: Sequence[Part | None] | None,
        max_tokens: int,
        encode: Callable[[str], list[int]],
        of_both: bool = False,
    ) -> str:
        """Leave out, of a prompt that is too long, the end of its question; ``of_both``: an answer is counted too."""
        place = self._place_of(prompt, questions[row] if questions else None)
        least = count_tokens(encode(without(prompt, place)))
        if least > max_tokens:
            with_answer, beside = (" but with its answer", "the image") if of_both else ("", "image and answer")
            long = "what was said before, the instruction" if turns_of(prompt) else "the instruction"
            raise TooLongError(
                f"a prompt leaves no room for its question: {least} tokens without it{with_answer}, "
                f"{max(max_tokens, 0)} allowed beside {beside}; shorten {long} or the answer "
                f"(the prompt begins {prompt[:60]!r})",
                row,
                least,
                max_tokens,
            )
        return shorten(prompt, place, lambda shorter: count_tokens(encode(shorter)) <= max_tokens)

    def _place_of(self, prompt: str, question: Part | None) -> slice:
        """Find the part of a prompt that may be shortened: behind the last picture, for none may be left out."""
        place = place_of(prompt, question)
        if self._mark is None or self._mark not in prompt[place]:
            return place
        return slice(prompt.rindex(self._mark, place.start, place.stop) + len(self._mark), place.stop)

    def _pad(self, ids: list[list[int]], labels: list[list[int]] | None, truncated: Sequence[int]) -> TextBatch:
        marks: list[tuple[int, ...]] = []
        if any(IMAGE in row for row in ids):
            found = [[n for n, number in enumerate(row) if number == IMAGE] for row in ids]
            # Those in front of a picture are no tokens.
            marks = [tuple(n - order for order, n in enumerate(row)) for row in found]
            kept = [[n for n, number in enumerate(row) if number != IMAGE] for row in ids]
            labels = labels and [[row[n] for n in own] for row, own in zip(labels, kept, strict=True)]
            ids = [[row[n] for n in own] for row, own in zip(ids, kept, strict=True)]
        longest = max(map(len, ids))
        pad = self.special_tokens["pad_token_id"]

        def rows(lists: list[list[int]], fill: int) -> Tensor:
            return torch.tensor([row + [fill] * (longest - len(row)) for row in lists])

        return TextBatch(
            input_ids=rows(ids, pad),
            attention_mask=rows([[1] * len(row) for row in ids], 0),
            labels=None if labels is None else rows(labels, IGNORED),
            truncated=tuple(truncated),
            marks=tuple(marks),
        )


def _of_each(max_tokens: int | Sequence[int] | None, count: int) -> Sequence[int] | None:
    return [max_tokens] * count if isinstance(max_tokens, int) else max_tokens

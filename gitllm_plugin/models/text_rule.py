"""Which texts a model cannot read: those that are too long for its context, however short their questions."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from gitllm_plugin.config.model import IMAGE_MARK
from gitllm_plugin.m3it.prompts import build_prompt, find_shortenable
from gitllm_plugin.modeling import TextBatch, TextEncoder
from gitllm_plugin.modeling.conversation import turns_of
from gitllm_plugin.modeling.fitting import TooLongError
from gitllm_plugin.modeling.marks import MarksError, place_pictures, wrong_marks
from gitllm_plugin.modeling.places import counts_of, pictures_of
from gitllm_plugin.models.samples import Samples, pixels_of, shortenable_of, with_one_answer_each, words_of

_TOKENS_OF_A_BYTE = 2
"""The most: one, and where tokenizers normalise, texts may become longer."""

_NAMED = 3  # of the prompts that are cut, in one line


@dataclass(frozen=True)
class ContextRule:
    """The rule of a model and of one size of images. It can be pickled.

    Attributes:
        text_encoder: counts tokens.
        room: positions of image, text and answer together.
        image_tokens: positions that an image takes.
        most_images: as many are counted at least; 0 where rows of a batch do not lengthen each other.
        answers: whether answers are read.
        new_tokens: how many may be generated behind a prompt, of which the last is not read; 0: none is.
    """

    text_encoder: TextEncoder
    room: int
    image_tokens: int
    most_images: int
    answers: bool
    new_tokens: int

    def bytes_that_fit(self, images: int) -> int:
        """Give so many bytes of instruction and answer as surely fit beside so many images."""
        if self.text_encoder.image_places == "text":
            return -1  # each has to be looked at: how often it says where a picture stands is not known
        # Marks and conversation, which every text has: counted with an empty instruction, twice to be sure.
        marks = 2 * self.text_encoder.least_tokens(build_prompt("article", "", "?"), "", "?")
        return max(0, self._room(images) - self._written - marks) // _TOKENS_OF_A_BYTE

    def fault(self, prompt: str, answer: str, question: str, images: int) -> str | None:
        """Say why a text does not fit however short its question; None where it does."""
        room, shortenable = self._room(images), find_shortenable(prompt, question)
        beside = f"beside {images} image{'' if images == 1 else 's'}" if images else "into the model's context"
        if self.answers:
            least = self.text_encoder.least_tokens(prompt, answer, shortenable, enough=room)
            if least > room:
                return (
                    f"the text is too long: with its answer it takes {least} tokens however short its question, and "
                    f"{max(room, 0)} fit {beside}; shorten the answer or the instruction"
                )
        if self.new_tokens:
            least = self.text_encoder.least_tokens(prompt, None, shortenable, enough=room - self._written)
            if least > room - self._written:
                return (
                    f"the prompt is too long: it takes {least} tokens however short its question, and "
                    f"{max(room - self._written, 0)} fit {beside} and an answer of {self.new_tokens} tokens; "
                    "shorten the instruction, or make run.max_len smaller"
                )
        return None

    def marks_fault(self, prompt: str, pictures: int) -> str | None:
        """Say why so many pictures do not stand in a prompt as it says; None where they do."""
        if self.text_encoder.image_places == "front":
            return None
        marks = sum(said.count(IMAGE_MARK) for said in (prompt, *(asked for asked, _ in turns_of(prompt))))
        return wrong_marks(marks, pictures)

    @property
    def _written(self) -> int:
        return max(self.new_tokens - 1, 0)

    def _room(self, images: int) -> int:
        return self.room - max(images, self.most_images) * self.image_tokens


class ReadsTexts:
    """The part of a registered model that encodes texts into the room that their images leave.

    Attributes:
        num_truncated_prompts: how many prompts did not fit into the context and lost the end of their question.
    """

    model: Any
    text_encoder: TextEncoder
    prompt: str
    num_truncated_prompts: int

    def text_rule(self, image: Tensor | None, answers: bool, new_tokens: int) -> ContextRule | None:
        """Give the rule for texts beside such images; None where the context has no end.

        Args:
            image: one of an item, ``[3, H, W]``, or features in its place; of pictures in tiles ``[F, 3, H, W]``, as
                many as there may be of one; None for none.
            answers: whether answers are read too, as a loss does.
            new_tokens: how many may be generated.
        """
        room = self.model.max_text_tokens(None)
        if room is None:
            return None
        tokens = 0
        if image is not None:
            images = image[None] if image.ndim == 3 else image
            tokens = (room - self.model.max_text_tokens(images[:1])) * len(images)
        most = self.model.max_images if self._rows_are_padded else 0
        return ContextRule(self.text_encoder, room, tokens, most, answers, new_tokens)

    def encode_prompts(self, samples: Samples, prompts: Sequence[str], written: int) -> TextBatch:
        """Encode prompts that so many tokens are read behind, each shortened to what its images leave.

        Raises:
            TooLongError: one does not fit however short its question; it is named by its id.
        """
        room = self._room_of_each(samples, len(prompts))
        room = None if room is None else [each - written for each in room]
        with _naming(samples, len(prompts)):
            text = self.text_encoder.prompts(prompts, questions=shortenable_of(samples, prompts), max_tokens=room)
        self._count_truncated(text, samples)
        return text

    def encode_texts(self, samples: Samples, prompts: Sequence[str], answers: Sequence[str]) -> TextBatch:
        """Encode prompts and answers, see :meth:`encode_prompts`."""
        room = self._room_of_each(samples, len(prompts))
        with _naming(samples, len(prompts)):
            text = self.text_encoder.prompts_and_answers(
                prompts, answers, questions=shortenable_of(samples, prompts), max_tokens=room
            )
        self._count_truncated(text, samples)
        return text

    def encode_pairs(self, samples: Samples, prompts: Sequence[str], answers: Sequence[str]) -> TextBatch:
        """Encode two answers to each prompt, whose labels are the answers alone.

        Args:
            samples: a batch of N texts with images; its other entries are of the 2N.
            prompts: 2N texts, of which the second half is the first again.
            answers: 2N texts. A prompt that is too long is shortened alike for both of its own.

        Raises:
            TooLongError: see :meth:`encode_prompts`.
        """
        room = self._room_of_each(samples, len(prompts))

        def encode() -> TextBatch:
            with _naming(samples, len(prompts)):
                return self._encoder_of_answers.prompts_and_answers(
                    prompts, answers, questions=shortenable_of(samples, prompts), max_tokens=room
                )

        text = encode()
        if text.truncated and room is not None:
            lengths = cast(Tensor, text.labels).ge(0).sum(1)
            longer = (lengths.roll(len(prompts) // 2) - lengths).clamp(min=0).tolist()
            room = [each - more for each, more in zip(room, longer, strict=True)]
            text = encode()
        self._count_truncated(text, samples)
        return text

    @cached_property
    def _encoder_of_answers(self) -> TextEncoder:
        encoder = self.text_encoder
        return encoder if encoder.loss_on == "answer" else replace(encoder, loss_on="answer")

    def count_tokens(self, samples: Samples) -> int:
        """Count the tokens of a batch as training reads them: those of each image once, and those of each text."""
        samples = with_one_answer_each(samples, self.prompt, self._known_classes)
        prompts, answers = list(samples.get("text_input", [])), samples.get("text_output")
        if answers is None:
            prompts, answers = [self.prompt] * len(prompts), words_of(prompts)
        text = self.text_encoder.prompts_and_answers(prompts, list(answers))
        lengths = text.attention_mask.sum(1).tolist()
        room = self._room_of_each(samples, len(lengths))
        # Those that are too long are shortened to what there is.
        read = sum(lengths) if room is None else sum(map(min, lengths, room))
        pixels = self._pixels(samples)
        if pixels is None:
            return read
        images = counts_of(torch.as_tensor(samples["num_images"])).tolist() if "num_images" in samples else None
        images = images or [pixels.shape[1] if pixels.ndim == 5 else 1] * len(pixels)
        rows: Sequence[int] = range(len(images))
        # Where one text has pictures between its words, each has its own.
        if text.marks and "image_index" in samples:
            rows = torch.as_tensor(samples["image_index"]).tolist()
        return read + sum(images[row] for row in rows) * self.model.tokens_of_image(pixels)

    def image_marks(self, samples: Samples, text: TextBatch) -> Tensor | None:
        """Say where in a batch's texts their pictures stand; None where all are in front.

        Raises:
            MarksError: a text says it of more or of fewer pictures than it has; it is named by its id.
        """
        if self.text_encoder.image_places == "front":
            return None
        count, pixels = len(text.input_ids), self._pixels(samples)
        pictures = [0] * count
        if pixels is not None:
            each = pixels.shape[1] if pixels.ndim == 5 else 1
            given = samples.get("num_images")
            of_entry = [each] * len(pixels) if given is None else pictures_of(torch.as_tensor(given)).tolist()
            index = samples.get("image_index")
            pictures = of_entry if index is None else [of_entry[row] for row in torch.as_tensor(index).tolist()]
        with _naming(samples, count):
            return place_pictures(text.marks or [()] * count, pictures, samples.get("images_seen"))

    def _pixels(self, samples: Mapping[str, Any]) -> Tensor | None:
        """Pixel values as the model takes them."""
        return pixels_of(samples)

    def _known_classes(self) -> list[str]:
        raise NotImplementedError

    @property
    def _rows_are_padded(self) -> bool:
        """Whether the images of a batch's other rows take positions of a row."""
        decoder = getattr(self.model, "decoder", None)
        return decoder is not None and decoder.positions == "slots"

    def _room_of_each(self, samples: Samples, count: int) -> list[int] | None:
        """Compute the most tokens of each text, which depend on its own images."""
        pixels, whole = self._pixels(samples), self.model.max_text_tokens(None)
        least = self.model.max_text_tokens(pixels)
        if least is None:
            return None
        if pixels is None or "num_images" not in samples or self._rows_are_padded:
            return [least] * count
        frames = pixels.shape[1] if pixels.ndim == 5 else 1
        of_an_image = (whole - least) // frames
        index = torch.as_tensor(samples["image_index"]).tolist() if "image_index" in samples else range(count)
        images = counts_of(torch.as_tensor(samples["num_images"])).tolist()
        return [whole - of_an_image * images[row] for row in index]

    def _count_truncated(self, text: TextBatch, samples: Samples) -> None:
        """Count prompts that were shortened; say so of the first few, and at the tenth, the hundredth, ..."""
        before = self.num_truncated_prompts
        self.num_truncated_prompts += text.num_truncated
        if not text.truncated:
            return
        if before < _NAMED or len(str(self.num_truncated_prompts)) > len(str(before)):
            names = [_name_of(samples, row, len(text.input_ids)) for row in text.truncated]
            rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            logging.warning(
                "%d prompts so far were longer than the context: the end of their question was cut off (now %s%s)",
                self.num_truncated_prompts,
                ", ".join(names[:_NAMED]),
                rest,
            )


@contextmanager
def _naming(samples: Samples, count: int) -> Iterator[None]:
    """Name the text that cannot be read: by its id, else by its place in the batch."""
    try:
        yield
    except TooLongError as error:
        name = _name_of(samples, error.row, count)
        raise TooLongError(f"{name}: {error}", error.row, error.least, error.allowed) from error
    except MarksError as error:
        raise MarksError(f"{_name_of(samples, error.row, count)}: {error}", error.row) from error


def _name_of(samples: Samples, row: int, count: int) -> str:
    """Name one of a batch's texts: by its id, else by its place."""
    ids = next((samples[key] for key in ("instance_id", "question_id", "image_id") if key in samples), None)
    # Several texts of one image or question may share an id.
    place = row
    if ids is not None and len(ids) != count and "image_index" in samples:
        place = int(samples["image_index"][row])
    if ids is not None and place < len(ids):
        return f"example {ids[place]!r}" if isinstance(ids[place], str) else f"example {int(ids[place])}"
    return f"text {row + 1} of {count} in the batch"

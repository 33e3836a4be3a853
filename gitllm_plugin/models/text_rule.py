"""Which texts a model cannot read: those that are too long for its context, however short their questions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gitllm_plugin.modeling import TextEncoder

_BYTES_OF_A_TOKEN = 2
"""So many tokens a byte are the most: one, and where tokenizers normalise, texts may become longer."""


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
        # Marks and conversation, which every text has: counted with an empty instruction, twice to be sure.
        marks = 2 * self.text_encoder.least_tokens("##Instruction:  ##Question:  ##Answer:", "", "")
        return max(0, self._room(images) - self._written - marks) // _BYTES_OF_A_TOKEN

    def fault(self, prompt: str, answer: str, question: str, images: int) -> str | None:
        """Say why a text does not fit however short its question; None where it does."""
        room = self._room(images)
        beside = f"beside {images} image{'' if images == 1 else 's'}" if images else "into the model's context"
        if self.answers:
            least = self.text_encoder.least_tokens(prompt, answer, question, enough=room)
            if least > room:
                return (
                    f"the text is too long: with its answer it takes {least} tokens however short its question, and "
                    f"{max(room, 0)} fit {beside}; shorten the answer or the instruction"
                )
        if self.new_tokens:
            least = self.text_encoder.least_tokens(prompt, None, question, enough=room - self._written)
            if least > room - self._written:
                return (
                    f"the prompt is too long: it takes {least} tokens however short its question, and "
                    f"{max(room - self._written, 0)} fit {beside} and an answer of {self.new_tokens} tokens; "
                    "shorten the instruction, or make run.max_len smaller"
                )
        return None

    @property
    def _written(self) -> int:
        return max(self.new_tokens - 1, 0)

    def _room(self, images: int) -> int:
        return self.room - max(images, self.most_images if images else 0) * self.image_tokens


class ReadsTexts:
    """What tells of a registered model which texts it cannot read."""

    model: Any
    text_encoder: TextEncoder

    def text_rule(self, image: Tensor | None, answers: bool, new_tokens: int) -> ContextRule | None:
        """Give the rule for texts beside such images; None where the context has no end.

        Args:
            image: of an item, ``[3, H, W]`` or ``[F, 3, H, W]``, or features in its place; None for none.
            answers: whether answers are read too, as a loss does.
            new_tokens: how many may be generated.
        """
        room = self.model.max_text_tokens(None)
        if room is None:
            return None
        tokens = 0
        if image is not None:
            frame = image if image.ndim == 3 else image[0]
            tokens = room - self.model.max_text_tokens(frame[None])
        decoder = getattr(self.model, "decoder", None)
        padded = decoder is not None and decoder.positions == "slots"
        most = self.model.max_images if padded else 0
        return ContextRule(self.text_encoder, room, tokens, most, answers, new_tokens)

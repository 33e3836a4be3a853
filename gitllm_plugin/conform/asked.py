"""What engines are asked: pictures and prompts that are made here, by a seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count

import numpy as np
from PIL import Image, ImageDraw

from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.inference.pipeline import Pipeline

QUESTIONS = (
    "what color is it?",
    "what is in the picture, and what stands beside it?",
    "is there a circle?",
    "describe the shape and its color in a few words",
    "what is on the left?",
    "how many are there, and where?",
)


@dataclass(frozen=True, eq=False)
class Asked:
    """A question about pictures, in all forms that an engine may take it in.

    Attributes:
        pictures: of the size that the model reads, so that nobody resizes them. The same tuple is the same pictures.
        question: the text that a person gives, without an instruction.
        pixels: of the pictures, as the image encoder takes them, float32 ``[F, 3, H, W]``.
        ids: tokens of the prompt, with all that stands around the question.
        then: tokens of an answer, to be read behind the prompt one by one, as an engine reads its own.
    """

    pictures: tuple[Image.Image, ...]
    question: str
    pixels: np.ndarray = field(repr=False)
    ids: tuple[int, ...]
    then: tuple[int, ...] = ()

    def followed_by(self, then: tuple[int, ...]) -> Asked:
        """Give the same question with other tokens behind it."""
        return replace(self, then=then)


class Asking:
    """Makes questions for a model.

    Args:
        pipeline: of the reference: it has the prompts and the size of pictures.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._side = pipeline.transform.least_side
        # The same objects each time: by them answers of the reference are known.
        self._pictures: dict[tuple[int, int], tuple[Image.Image, ...]] = {}
        self._asked: dict[tuple[int, str], Asked] = {}

    def pictures(self, seed: int, number: int = 1) -> tuple[Image.Image, ...]:
        """Draw pictures, other ones for each seed."""
        if (seed, number) not in self._pictures:
            random = np.random.default_rng(seed)
            self._pictures[seed, number] = tuple(_draw(random, self._side) for _ in range(number))
        return self._pictures[seed, number]

    def ask(self, pictures: tuple[Image.Image, ...], question: str) -> Asked:
        """Ask about pictures that :meth:`pictures` gave.

        Raises:
            ConfigError: the model has no room for a short question.
        """
        if (id(pictures), question) not in self._asked:
            self._asked[id(pictures), question] = self._ask(pictures, question)
        return self._asked[id(pictures), question]

    def one_question(self, number: int, question: str = QUESTIONS[0]) -> list[Asked]:
        """Ask the same about several pictures: prompts of one length."""
        return [self.ask(self.pictures(seed), question) for seed in range(number)]

    def all(self) -> Iterator[Asked]:
        """Ask about one picture after another, without end."""
        for seed in count():
            yield self.ask(self.pictures(seed), QUESTIONS[seed % len(QUESTIONS)])

    def _ask(self, pictures: tuple[Image.Image, ...], question: str) -> Asked:
        pipeline = self._pipeline
        pixels = pipeline.pixels(list(pictures)).float().cpu()
        room = pipeline.model.max_text_tokens(pixels)
        encoder = pipeline.text_encoder
        try:
            batch = encoder.prompts([pipeline.prompt(question)], [question], None if room is None else room - 16)
        except DataError as error:
            raise ConfigError(f"this model has no room for {question!r} beside {len(pictures)} pictures") from error
        if batch.truncated:
            raise ConfigError(f"this model has no room for {question!r} beside {len(pictures)} pictures")
        ids = tuple(batch.input_ids[0, batch.attention_mask[0].bool()].tolist())
        return Asked(pictures, question, pixels.flatten(0, -4).numpy(), ids)


def _draw(random: np.random.Generator, side: int) -> Image.Image:
    # Colours everywhere, so that each patch tells something, and a shape, which trained models know.
    grid = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    picture = grid.resize((side, side), Image.Resampling.BICUBIC if random.random() < 0.5 else Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)
    left, top = random.integers(0, side // 2, 2).tolist()
    box = (left, top, left + side // 3, top + side // 3)
    color = tuple(random.integers(0, 256, 3).tolist())
    (draw.ellipse if random.random() < 0.5 else draw.rectangle)(box, fill=color)
    return picture

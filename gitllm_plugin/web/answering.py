"""What happens when a button of the page is pressed; nothing here knows of Gradio."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from gitllm_plugin.errors import DataError
from gitllm_plugin.inference.attention import answer_attention, attention_figure
from gitllm_plugin.inference.pipeline import Decoding, Pipeline
from gitllm_plugin.m3it.pictures import read_pixels
from gitllm_plugin.processors.video_frames import read_frames
from gitllm_plugin.web.limits import MOST_FRAMES, MOST_PIXELS, check_pixels
from gitllm_plugin.words.draw import words_figure
from gitllm_plugin.words.nearest import MEASURES
from gitllm_plugin.words.picture import picture_words
from gitllm_plugin.words.vectors import patch_vectors
from gitllm_plugin.words.vocabulary import Vocabulary, read_vocabulary

VIDEO_SUFFIXES = (".mp4", ".webm", ".mov", ".avi", ".mkv")


@dataclass
class Answering:
    """A model behind a page.

    Attributes:
        pipeline: the model.
    """

    pipeline: Pipeline

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The language model's words, read once."""
        return read_vocabulary(self.pipeline.model.language_model, self.pipeline.text_encoder.tokenizer)

    def read_pictures(self, files: Sequence[str]) -> list[Image.Image]:
        """Read pictures from uploaded files; of a video as many frames as the model takes.

        Raises:
            DataError: none, too many, or one that cannot be read.
        """
        if not files:
            raise DataError("There is no picture yet: drop one in, or choose an example.")
        pictures: list[Image.Image] = []
        for file in files:
            check_pixels([picture.size for picture in pictures])
            if Path(file).suffix.lower() in VIDEO_SUFFIXES:
                frames = read_frames(file, self.pipeline.model.max_images, MOST_PIXELS, MOST_FRAMES)
                pictures += [Image.fromarray(frame) for frame in frames]
            else:
                pictures.append(Image.fromarray(read_pixels(file, Path(file).name, MOST_PIXELS)))
        most = self.pipeline.model.max_images
        if len(pictures) > most:
            raise DataError(f"{len(pictures)} pictures, but this model takes {most} at most: remove some.")
        check_pixels([picture.size for picture in pictures])
        return pictures

    def answer(
        self, pictures: Sequence[Image.Image], question: str, instruction: str | None, decoding: Decoding
    ) -> Iterator[str]:
        """Give the answer so far, as often as it grows; a search with beams gives it once."""
        if decoding.num_beams > 1:
            yield self.pipeline.answer(pictures, question, instruction, decoding)
        else:
            yield from self.pipeline.stream(pictures, question, instruction, decoding)

    def draw_words(self, pictures: Sequence[Image.Image]) -> Any:
        """Draw the figure of the first picture's nearest words."""
        with self.pipeline.exclusive() as model:
            vectors = patch_vectors(model, self.pipeline.pixels(pictures))[0, 0]
        words = picture_words(vectors, self.vocabulary, k=1)
        return words_figure(self.pipeline.seen(pictures[0]), words, MEASURES)

    def draw_attention(
        self, pictures: Sequence[Image.Image], question: str, instruction: str | None, answer: str, decoding: Decoding
    ) -> Any:
        """Draw the figure of what the answer attends to; None for an empty answer."""
        if not answer:
            return None
        attention = answer_attention(self.pipeline, pictures, question, answer, instruction, decoding)
        return attention_figure([self.pipeline.seen(picture) for picture in pictures], attention)

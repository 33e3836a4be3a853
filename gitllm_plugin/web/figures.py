"""Figures about an answer, as HTML with a text for who does not see them; from a model in torch."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import Any

from PIL import Image

from gitllm_plugin.inference.asking import Answering, Decoding, Question
from gitllm_plugin.inference.attention import answer_attention, attention_figure
from gitllm_plugin.inference.pipeline import Pipeline
from gitllm_plugin.words.draw import words_figure
from gitllm_plugin.words.nearest import MEASURES
from gitllm_plugin.words.picture import picture_words
from gitllm_plugin.words.vectors import patch_vectors
from gitllm_plugin.words.vocabulary import Vocabulary, read_vocabulary

_DOTS_PER_INCH = 110


@dataclass
class Figures:
    """Draws what a model looks at.

    Attributes:
        pipeline: the model.
    """

    pipeline: Pipeline

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The language model's words, read once."""
        return read_vocabulary(self.pipeline.model.language_model, self.pipeline.text_encoder.tokenizer)

    def words(self, pictures: Sequence[Image.Image]) -> str:
        """Draw the first picture's nearest words."""
        with self.pipeline.exclusive() as model:
            vectors = patch_vectors(model, self.pipeline.pixels(pictures))[0, 0]
        nearest = picture_words(vectors, self.vocabulary, k=1)
        figure = words_figure(self.pipeline.seen(pictures[0]), nearest, MEASURES)
        return _as_html(figure, "The picture with the language model's nearest token written on each patch")

    def attention(
        self, pictures: Sequence[Image.Image], asked: Question, answer: str, decoding: Decoding
    ) -> str | None:
        """Draw what the answer attends to; None for an empty answer."""
        if not answer:
            return None
        attention = answer_attention(
            self.pipeline, pictures, asked.text, answer, asked.instruction, decoding, asked.turns
        )
        figure = attention_figure([self.pipeline.seen(picture) for picture in pictures], attention)
        share = float(attention.maps.mean(0).sum())
        told = f"The picture with the attention of each token of the answer {answer!r}: {share:.0%} is on the picture"
        return _as_html(figure, told)


def figures_of(engine: Answering) -> Figures | None:
    """Give what draws figures of an engine; None for one that gives neither vectors nor attention."""
    return Figures(engine) if isinstance(engine, Pipeline) else None


def _as_html(figure: Any, text: str) -> str:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=_DOTS_PER_INCH)
    source = f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
    return f'<img src="{source}" alt="{escape(text)}" style="max-width: 100%; height: auto">'

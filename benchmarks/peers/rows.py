"""A row a text, as most programs take it: places for the image's tokens, prompt and answer, padded to the longest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.peers.cases import IMAGE, PAD, Case, Text

IGNORED = -100


@dataclass(frozen=True)
class Rows:
    """N texts.

    Attributes:
        input_ids, attention_mask, labels: long ``[N, S]``, the image's places included.
        pixel_values: float ``[N, 3, H, W]``: every text has an image of its own; None: no text has one.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    pixel_values: Tensor | None

    @property
    def token_type_ids(self) -> Tensor:
        """0 where the image is, 1 elsewhere."""
        return (self.input_ids != IMAGE).long()


def pixels(case: Case, size: int) -> Tensor:
    """Draw the case's images, float ``[U, 3, H, W]``."""
    return torch.randn(case.images, 3, size, size, generator=torch.Generator().manual_seed(0))


def training_rows(texts: Sequence[Text], image_tokens: int, images: Tensor | None, pad_to: int = 0) -> Rows:
    """Pad on the right.

    Args:
        texts: prompts with their answers.
        image_tokens: places for an image; 0 for programs that put it in front by themselves.
        images: float ``[U, 3, H, W]``; None: texts alone.
        pad_to: tokens of text, at least.
    """
    places = [IMAGE] * (image_tokens if images is not None else 0)
    rows = [[*places, *text.prompt, *text.answer] for text in texts]
    labels = [[IGNORED] * (len(places) + len(text.prompt)) + list(text.answer) for text in texts]
    width = max(len(places) + pad_to, *map(len, rows))
    return Rows(
        torch.tensor([row + [PAD] * (width - len(row)) for row in rows]),
        torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
        torch.tensor([row + [IGNORED] * (width - len(row)) for row in labels]),
        of_texts(images, texts),
    )


def prompt_rows(texts: Sequence[Text], image_tokens: int, images: Tensor) -> Rows:
    """Pad prompts on the left, in front of the image."""
    rows = [[IMAGE] * image_tokens + list(text.prompt) for text in texts]
    width = max(map(len, rows))
    input_ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return Rows(input_ids, mask, torch.full_like(input_ids, IGNORED), of_texts(images, texts))


def answers_to(text: Text, answers: Sequence[Sequence[int]]) -> list[Text]:
    """Give the prompt once for each answer."""
    return [Text(text.prompt, answer, text.image) for answer in answers]


def of_texts(images: Tensor | None, texts: Sequence[Text]) -> Tensor | None:
    """Give each text its image."""
    return None if images is None else images[[text.image for text in texts]]


def log_likelihoods(logits: Tensor, labels: Tensor) -> list[float]:
    """Add up each row's log-probabilities of its labels.

    Args:
        logits: ``[N, S, V]``.
        labels: long ``[N, S]``, not yet shifted.
    """
    targets = labels[:, 1:]
    scores = logits[:, :-1].float().log_softmax(-1).gather(2, targets.clamp(min=0)[..., None])[..., 0]
    return scores.masked_fill(targets == IGNORED, 0.0).double().sum(1).tolist()

"""Random batches with the lengths of captions and short answers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gitllm_plugin.modeling import GitLLM
from gitllm_plugin.modeling.tokens import IGNORED

PROMPT_TOKENS = (20, 50)
"""Least and most tokens of instruction and question together: M3IT's instructions have one to three sentences."""
ANSWER_TOKENS = (6, 18)
"""Least and most tokens of an answer: COCO's captions have 11 words on average."""


@dataclass(frozen=True)
class Batch:
    """N texts about U images.

    Attributes:
        pixel_values: float ``[U, 3, H, W]``.
        input_ids, attention_mask, labels: long ``[N, T]``, padded on the right; answers alone are trained on.
        image_index: long ``[N]``.
    """

    pixel_values: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    image_index: Tensor

    @property
    def num_texts(self) -> int:
        """How many examples a step over this batch trains on."""
        return len(self.input_ids)

    @property
    def num_supervised(self) -> int:
        """How many tokens the loss is the mean of."""
        return int((self.labels[:, 1:] != IGNORED).sum())

    def num_real_tokens(self, image_tokens: int) -> int:
        """Tokens that the language model has to read: each image once, each text once."""
        return len(self.pixel_values) * image_tokens + int(self.attention_mask.sum())


def random_batch(model: GitLLM, images: int, texts_per_image: int, seed: int = 0, device: str | None = None) -> Batch:
    """Give a batch for ``model``, on its device; the same one for the same arguments.

    Args:
        model: gives image size, vocabulary and device.
        images: how many images.
        texts_per_image: texts about each.
        seed: of lengths and values.
        device: another device than the model's.
    """
    generator = torch.Generator().manual_seed(seed)
    count, size = images * texts_per_image, model.image_encoder.image_size or 224

    def draw(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    prompts, answers = draw(*PROMPT_TOKENS, count), draw(*ANSWER_TOKENS, count)
    lengths = prompts + answers
    slot = torch.arange(int(lengths.max()))[None]
    real, is_answer = slot < lengths[:, None], slot >= prompts[:, None]
    input_ids = draw(4, model.language_model.config.vocab_size, *real.shape).where(real, 1)
    device = device or model.projection.weight.device
    return Batch(
        pixel_values=torch.randn(images, 3, size, size, generator=generator).to(device),
        input_ids=input_ids.to(device),
        attention_mask=real.long().to(device),
        labels=input_ids.where(real & is_answer, IGNORED).to(device),
        image_index=torch.arange(images).repeat_interleave(texts_per_image).to(device),
    )

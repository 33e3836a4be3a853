"""What was read last, so that a conversation's next question reads what is new alone.

Image, questions and answers so far stand in front of the next question, token by token the same, and no state of theirs
sees what follows: keys and values of them are those of the whole row.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from os.path import commonprefix
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from gitllm_plugin.modeling.model import GitLLM

_changes = attrgetter("_version")
"""How often a tensor was changed in place, as torch counts for autograd."""


@dataclass
class _Read:
    """What the model read last.

    Attributes:
        weights: state of the model's weights then.
        images: pixels ``[1, 3, H, W]`` or ``[1, F, 3, H, W]``, and their places where they are in tiles.
        embeds, valid: what :meth:`GitLLM.encode_images` made of them.
        ids: of the tokens behind the image that are in the cache.
        cache: of one row.
    """

    weights: int
    images: tuple[Tensor, Tensor | None]
    embeds: Tensor
    valid: Tensor
    ids: list[int]
    cache: Cache


class Remembered:
    """Continues prompts, and keeps what it read of the last one.

    Attributes:
        num_reused: text tokens that the last call did not read again.
    """

    def __init__(self) -> None:
        self._last: _Read | None = None
        self.num_reused = 0

    @torch.no_grad()
    def generate(
        self, model: GitLLM, pixel_values: Tensor, input_ids: Tensor, num_images: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Continue one prompt as ``model.generate`` does.

        Where states of image or text see what stands behind them, or the language model keeps no whole rows, all is
        read anew.

        Args:
            model: which one it is may change from call to call.
            pixel_values: ``[1, 3, H, W]`` or ``[1, F, 3, H, W]``.
            input_ids: long ``[1, T]`` without padding.
            num_images: of pictures in tiles their places, long ``[1, F, 3]``, see
                :mod:`~gitllm_plugin.modeling.places`.
            **kwargs: of transformers' ``generate``.

        Returns:
            New ids ``[1, L]``.
        """
        # Whatever ends this early leaves nothing that was half read.
        last, self._last, self.num_reused = self._last, None, 0
        decoder, weights, images = model.decoder, _state_of(model), (pixel_values, num_images)
        if last is None or last.weights != weights or not all(map(_is_same, last.images, images)):
            if not decoder.shares_images or decoder.sliding_window is not None or _searches(model, kwargs):
                return model.generate(input_ids, None, pixel_values, num_images=num_images, **kwargs)
            embeds, valid = model.encode_images(*images)
            last = _Read(weights, images, embeds, valid, [], decoder.prefill(embeds, valid))
        if _searches(model, kwargs) or any(type(layer) is not DynamicLayer for layer in last.cache.layers):
            return model.generate(input_ids, None, pixel_values, num_images=num_images, **kwargs)
        ids: list[int] = input_ids[0].tolist()
        # The last token of a prompt is always read: the next one is predicted there.
        self.num_reused = len(commonprefix([last.ids, ids[:-1]]))
        image_tokens = last.cache.get_seq_length() - len(last.ids)
        if gone := len(last.ids) - self.num_reused:
            last.cache.crop(-gone)
        tokens = decoder.generate(last.embeds, last.valid, input_ids, cache=last.cache, **kwargs)
        last.ids = [*ids, *tokens[0].tolist()][: last.cache.get_seq_length() - image_tokens]
        self._last = last
        return tokens


def _is_same(pixels: Tensor | None, others: Tensor | None) -> bool:
    if pixels is None or others is None:
        return pixels is others
    return pixels.shape == others.shape and pixels.dtype == others.dtype and torch.equal(pixels, others)


def _searches(model: GitLLM, kwargs: dict[str, Any]) -> bool:
    """Tell whether the cache has to be of another kind, or of more rows."""
    usual: Any = model.language_model.generation_config
    kind = kwargs.get("cache_implementation", getattr(usual, "cache_implementation", None))
    return (kwargs.get("num_beams") or 1) > 1 or kind is not None


def _state_of(model: GitLLM) -> int:
    """Give a number that is another one when a weight is replaced or changed in place."""
    return hash(tuple((weight.data_ptr(), _changes(weight)) for weight in model.parameters()))

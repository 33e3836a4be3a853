"""This package's own engine: batches, shared images, caches and beams of :class:`~gitllm_plugin.modeling.GitLLM`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from gitllm_plugin.conform.asked import Asked
from gitllm_plugin.inference.pipeline import Pipeline


class TorchEngine:
    """A model as it answers.

    Args:
        pipeline: the model; not the one of the reference.
    """

    name = "torch"
    batches = True

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        dtype = cast(Any, pipeline.model.language_model).dtype
        self.precision = str(dtype).removeprefix("torch.")

    @torch.no_grad()
    def logits(self, asked: Sequence[Asked]) -> list[np.ndarray]:
        """Generate, with the cache, the tokens that are to be read."""
        forced = Forced([each.then for each in asked])
        out = self.pipeline.model.generate(**self._inputs([each.ids for each in asked], asked), **forced.arguments)
        return [torch.stack([step[row] for step in out.logits]).float().cpu().numpy() for row in range(len(asked))]

    @torch.no_grad()
    def every(self, asked: Sequence[Asked]) -> list[np.ndarray]:
        """Score texts as in training."""
        texts = [each.ids + each.then for each in asked]
        logits = self.pipeline.model(**self._inputs(texts, asked)).logits.float().cpu().numpy()
        return [row[: len(text)] for row, text in zip(logits, texts, strict=True)]

    @torch.no_grad()
    def beams(self, asked: Sequence[Asked], num_beams: int, new_tokens: int) -> list[tuple[list[int], float]]:
        """Search with beams."""
        inputs = self._inputs([each.ids for each in asked], asked)
        return searched(self.pipeline.model.generate(**inputs, **search(num_beams, new_tokens)), new_tokens)

    def _inputs(self, texts: Sequence[tuple[int, ...]], asked: Sequence[Asked]) -> dict[str, Tensor | None]:
        """Make a batch, in which pictures that several ask about stand once."""
        groups = {id(each.pictures): each for each in asked}
        places = {key: place for place, key in enumerate(groups)}
        index = torch.tensor([places[id(each.pictures)] for each in asked])
        ids, mask = pad(texts, 0, left=False)
        device = self.pipeline.device
        pixels, counts = self._pixels(list(groups.values()))
        inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels, "num_images": counts}
        inputs["image_index"] = index if len(groups) < len(asked) else None
        return {name: None if value is None else value.to(device) for name, value in inputs.items()}

    def _pixels(self, asked: Sequence[Asked]) -> tuple[Tensor, Tensor | None]:
        pixels = [torch.from_numpy(each.pixels) for each in asked]
        if self.pipeline.model.max_images == 1:
            return torch.cat(pixels), None
        counts = torch.tensor([len(each) for each in pixels])
        return torch.nn.utils.rnn.pad_sequence(pixels, batch_first=True), counts


class Forced(LogitsProcessor):
    """Lets ``generate`` read given tokens, and gives their logits.

    Args:
        then: the tokens of each row, equally many.

    Attributes:
        arguments: of ``generate``.
    """

    def __init__(self, then: Sequence[tuple[int, ...]]) -> None:
        self._then, self._step = torch.tensor(then, dtype=torch.long), 0
        self.arguments = {
            "logits_processor": LogitsProcessorList([self]),
            "max_new_tokens": 1 + self._then.shape[1],
            "do_sample": False,
            "eos_token_id": None,
            "pad_token_id": 0,
            "return_dict_in_generate": True,
            "output_logits": True,
        }

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Make the next of the tokens the only one that is possible."""
        if self._step < self._then.shape[1]:
            wanted = self._then[:, self._step, None].to(scores.device)
            scores = torch.full_like(scores, -torch.inf).scatter(1, wanted, 0.0)
        self._step += 1
        return scores


def search(num_beams: int, new_tokens: int) -> dict[str, Any]:
    """Make the arguments of ``generate`` for a search whose score is the likelihood, whatever its length."""
    return {
        "num_beams": num_beams,
        "max_new_tokens": new_tokens,
        "length_penalty": 0.0,
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 0,
        "return_dict_in_generate": True,
        "output_scores": True,
    }


def searched(out: Any, new_tokens: int) -> list[tuple[list[int], float]]:
    """Take tokens and likelihoods out of what ``generate`` gives."""
    return list(zip(out.sequences[:, -new_tokens:].tolist(), out.sequences_scores.tolist(), strict=True))


def pad(texts: Sequence[tuple[int, ...]], token: int, left: bool) -> tuple[Tensor, Tensor]:
    """Make rows of equal length, and their mask, long ``[N, T]`` each."""
    longest = max(map(len, texts))
    side = [(longest - len(text), 0) if left else (0, longest - len(text)) for text in texts]
    ids = [[token] * before + [*text] + [token] * behind for text, (before, behind) in zip(texts, side, strict=True)]
    mask = [[0] * before + [1] * len(text) + [0] * behind for text, (before, behind) in zip(texts, side, strict=True)]
    return torch.tensor(ids), torch.tensor(mask)

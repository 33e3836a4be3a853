"""What is computed of features and likelihoods of pictures and texts, for LAVIS's task ``retrieval``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from gitllm_plugin.errors import DataError


def pooled(states: Tensor, mask: Tensor) -> Tensor:
    """Give one vector of length 1 a row: the mean direction of its tokens.

    Args:
        states: float ``[N, T, D]``.
        mask: ``[N, T]``, what counts.

    Returns:
        float32 ``[N, D]``.
    """
    # Of directions: a first token, which others attend to for want of better, can be a thousand times as long.
    directions = normalize(states.float(), dim=-1) * mask[..., None].to(torch.float32)
    return normalize(directions.sum(1), dim=-1)


def centred_cosines(images: Tensor, texts: Tensor) -> Tensor:
    """Compute cosines ``[U, C]`` of features, each kind seen from its own mean: the two lie apart from each other."""
    return normalize(images - images.mean(0), dim=-1) @ normalize(texts - texts.mean(0), dim=-1).T


def pairs_of(cosines: Tensor, count: int) -> Tensor:
    """Choose ``count`` texts for each picture and as many pictures for each text: bool ``[U, C]``."""
    pairs = torch.zeros_like(cosines, dtype=torch.bool)
    for dim in (0, 1):
        pairs.scatter_(dim, cosines.topk(min(count, cosines.shape[dim]), dim=dim).indices, True)
    return pairs


def with_rest_behind(scores: Tensor, cosines: Tensor) -> Tensor:
    """Put pairs that were not scored (minus infinity) behind all that were, the nearest first."""
    left_out = scores.isinf()
    return torch.where(left_out, scores[~left_out].min() - 2 + cosines, scores)


def merged(parts: Sequence[Mapping[int, Tensor]], count: int) -> Tensor:
    """Stack all ranks' rows by the number of their picture.

    Raises:
        DataError: one is missing.
    """
    rows = {number: row for part in parts for number, row in part.items()}
    if missing := [number for number in range(count) if number not in rows]:
        raise DataError(
            f"{len(missing)} of the {count} pictures were in no batch (number {missing[0]}, ...): a retrieval needs "
            "all of them; evaluate the whole split"
        )
    return torch.stack([rows[number] for number in range(count)])

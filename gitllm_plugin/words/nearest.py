"""The tokens nearest to a vector, by the article's two measures."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from gitllm_plugin.words.vocabulary import Vocabulary

Measure = Literal["cosine", "dot"]
MEASURES: tuple[Measure, ...] = ("cosine", "dot")
"""``cosine`` is what the article says, ``dot`` what its code computes: long embeddings win there."""

_ROWS = 256


def nearest_tokens(vectors: Tensor, vocabulary: Vocabulary, k: int, measure: Measure) -> tuple[Tensor, Tensor]:
    """Find the k nearest tokens of each vector.

    Args:
        vectors: ``[n, D]``.
        vocabulary: V tokens.
        k: at most V.
        measure: of :data:`MEASURES`.

    Returns:
        Scores ``[n, k]``, falling, and indices into the vocabulary ``[n, k]``.
    """
    vectors = vectors.float().cpu()
    table = vocabulary.directions if measure == "cosine" else vocabulary.vectors
    if measure == "cosine":
        vectors = F.normalize(vectors, dim=-1)
    best = [(rows @ table.T).topk(k, dim=-1) for rows in vectors.split(_ROWS)]
    return torch.cat([part.values for part in best]), torch.cat([part.indices for part in best])

"""One picture in words: the nearest tokens of each of its patches."""

from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from gitllm_plugin.common.files import atomic_path, write_atomically
from gitllm_plugin.words.nearest import MEASURES, Measure, nearest_tokens
from gitllm_plugin.words.vocabulary import Vocabulary


@dataclass(frozen=True)
class PatchWord:
    """One of the nearest tokens of a patch.

    Attributes:
        row, column: of the patch, from the picture's upper left corner.
        measure: by which it is near.
        rank: 1 is the nearest.
        token: its text, with the space in front where it has one.
        score: cosine similarity or dot product.
    """

    row: int
    column: int
    measure: Measure
    rank: int
    token: str
    score: float


@dataclass(frozen=True)
class PictureWords:
    """All patches of a picture.

    Attributes:
        grid: rows and columns of patches.
        entries: by measure, row, column and rank.
    """

    grid: tuple[int, int]
    entries: list[PatchWord]

    def nearest(self, measure: Measure) -> list[PatchWord]:
        """Give the nearest token of each patch, row by row."""
        return [entry for entry in self.entries if entry.measure == measure and entry.rank == 1]

    def counts(self, measure: Measure) -> list[tuple[str, int]]:
        """Count how many patches each nearest token has, the most frequent first."""
        return Counter(entry.token for entry in self.nearest(measure)).most_common()


def picture_words(vectors: Tensor, vocabulary: Vocabulary, k: int = 5) -> PictureWords:
    """Look up a picture's vectors.

    Args:
        vectors: ``[rows, columns, D]``, see :func:`~gitllm_plugin.words.vectors.patch_vectors`.
        vocabulary: the language model's.
        k: how many tokens a patch.
    """
    rows, columns = vectors.shape[:2]
    entries = []
    for measure in MEASURES:
        scores, tokens = nearest_tokens(vectors.flatten(0, 1), vocabulary, k, measure)
        for patch, (its_scores, its_tokens) in enumerate(zip(scores.tolist(), tokens.tolist(), strict=True)):
            for rank, (score, token) in enumerate(zip(its_scores, its_tokens, strict=True), start=1):
                place = divmod(patch, columns)
                entries.append(PatchWord(*place, measure, rank, vocabulary.texts[token], round(score, 5)))
    return PictureWords((rows, columns), entries)


def write_csv(words: PictureWords, path: Path) -> None:
    """Write a line for each patch, measure and rank."""
    with atomic_path(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(PatchWord.__dataclass_fields__)
        writer.writerows(vars(entry).values() for entry in words.entries)


def write_json(words: PictureWords, path: Path) -> None:
    """Write grid, counts and all entries."""
    content = {
        "grid": words.grid,
        "counts": {measure: dict(words.counts(measure)) for measure in MEASURES},
        "patches": [vars(entry) for entry in words.entries],
    }
    write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")

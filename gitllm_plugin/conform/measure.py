"""Answers compared: by how much they differ, and which of several faults makes that difference."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Answer = Any
"""Logits, float32 ``[n, V]``; or a text."""

_LEAST_SHARE, _LEAST_CORRELATION, _LEAST_SIZE = 0.5, 0.45, 0.5


@dataclass(frozen=True)
class Analysis:
    """What was found, beside what is right and what faults would make of it.

    Attributes:
        difference: of logits the largest, as a share of the largest logit; of texts the share of those that differ.
        is_right: it is within the tolerance, and no fault explains it.
        blamed: the fault that explains the difference best; None: none does.
        untold: faults that would change too little to be seen here.
    """

    difference: float
    is_right: bool
    blamed: Hashable | None
    untold: frozenset[Hashable] = field(default=frozenset())


def analyse(
    found: Sequence[Answer], wanted: Sequence[Answer], faulty: Mapping[Any, Sequence[Answer]], tolerance: float
) -> Analysis:
    """Compare answers with the right ones and with those of faults.

    A fault may be smaller than what few bits round away. It is seen nevertheless, because rounding has no direction: a
    fault is blamed where what was found lies at least half way to what it makes, and in its direction.

    Args:
        found: of each question, logits or a text.
        wanted: what is right.
        faulty: fault -> what it would make.
        tolerance: what logits may differ, as a share of the largest.
    """
    if not isinstance(wanted[0], np.ndarray):
        return _analyse_texts(found, wanted, faulty)
    off = _direction(found, wanted)
    difference, length = float(np.abs(off).max()), float(np.linalg.norm(off))
    blamed, best, untold = None, _LEAST_CORRELATION, set()
    for fault, answers in faulty.items():
        way = _direction(answers, wanted)
        size = float(np.linalg.norm(way))
        if size == 0 or size < _LEAST_SIZE * length and difference <= tolerance:
            untold.add(fault)
            continue
        along = float(off @ way)
        correlation = along / (size * length) if length else 0.0
        if along / size**2 >= _LEAST_SHARE and correlation >= best:
            blamed, best = fault, correlation
    return Analysis(difference, difference <= tolerance and blamed is None, blamed, frozenset(untold))


def difference_of(found: np.ndarray, wanted: np.ndarray) -> float:
    """Give the largest difference as a share of the largest value."""
    return float(np.abs(_direction([found], [wanted])).max())


def _direction(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> np.ndarray:
    pairs = zip(found, wanted, strict=True)
    return np.concatenate([((f - w) / np.abs(w).max()).ravel().astype(np.float64) for f, w in pairs])


def _analyse_texts(found: Sequence[str], wanted: Sequence[str], faulty: Mapping[Any, Sequence[str]]) -> Analysis:
    def alike(answers: Sequence[str]) -> int:
        return sum(f == a for f, a in zip(found, answers, strict=True))

    equal = alike(wanted)
    untold = frozenset(fault for fault, answers in faulty.items() if list(answers) == list(wanted))
    if equal == len(wanted):
        return Analysis(0.0, True, None, untold)
    # A fault that explains no more than what is right is none.
    scores = {fault: alike(answers) for fault, answers in faulty.items() if fault not in untold}
    best = max(scores, key=lambda fault: scores[fault], default=None)
    explains = best is not None and scores[best] > equal and scores[best] >= len(wanted) * _LEAST_SHARE
    return Analysis(1 - equal / len(wanted), False, best if explains else None, untold)

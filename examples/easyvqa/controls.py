"""What can be got right without a picture: the best guess from the question alone."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from examples.easyvqa.data import Row
from gitllm_plugin.metrics.controls import most_frequent


def learn_best_guesses(rows: Iterable[Row]) -> dict[str, str]:
    """Give the most frequent answer to each question text; of equally frequent ones, the first in the alphabet.

    Args:
        rows: what may be learnt from, that is, the train split.
    """
    answers: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        answers[row["inputs"]].append(row["outputs"])
    return {question: most_frequent(given) for question, given in answers.items()}


def score_best_guesses(train: Iterable[Row], test: Iterable[Row]) -> float:
    """Give the part of ``test`` that the best guess from ``train`` gets right.

    A question that ``train`` does not have counts as wrong.

    Raises:
        ValueError: ``test`` is empty.
    """
    guesses: Mapping[str, str] = learn_best_guesses(train)
    right = [guesses.get(row["inputs"]) == row["outputs"] for row in test]
    if not right:
        raise ValueError("there is no row to guess the answer of")
    return sum(right) / len(right)

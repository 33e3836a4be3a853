"""What is scored without looking at the pictures, beside which a score has to be read."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from gitllm_plugin.metrics.captions import CAPTION_METRICS
from gitllm_plugin.metrics.registry import score

GUESS, OTHERS = "best guess from the question alone", "the same answers, to other pictures"
LEAST = 20
"""Fewer examples say nothing about chance."""

_MOST = 2000  # answers compared with other pictures: scoring is not to take twice as long
_OFTEN = 10  # a question that is asked so often has a guess of its own; the others share one


def score_controls(
    names: Sequence[str], questions: Sequence[str], predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, dict[str, float]]:
    """Score the best guess from the question alone, and the model's answers as if they were to other pictures.

    The guess is the answer that is most frequent to a question in these very examples: no answer that does not depend
    on the picture is right more often. An answer is moved to other pictures about which the same was asked.

    Args:
        names: of metrics; those of captions, which score a set as a whole, are left out.
        questions: N; of those that are asked rarely, all together count as one.
        predictions: N texts.
        references: N lists of one or more accepted texts.

    Returns:
        :data:`GUESS` and :data:`OTHERS` -> metric -> score; empty for fewer than :data:`LEAST` examples.
    """
    names = [name for name in names if name not in CAPTION_METRICS]
    if not names or len(predictions) < LEAST:
        return {}
    asked = Counter(questions)
    groups: dict[str | None, list[int]] = {}
    for number, question in enumerate(questions):
        groups.setdefault(question if asked[question] >= _OFTEN else None, []).append(number)
    guesses = [""] * len(predictions)
    for members in groups.values():
        guess = most_frequent([answer for number in members for answer in dict.fromkeys(references[number])])
        for number in members:
            guesses[number] = guess
    moved = _moved(groups.values())
    return {
        GUESS: score(names, guesses, references).over_all,
        OTHERS: score(
            names, [predictions[one] for one, _ in moved], [references[other] for _, other in moved]
        ).over_all,
    }


def most_frequent(answers: Iterable[str]) -> str:
    """Give the most frequent answer; of equally frequent ones, the first in the alphabet."""
    counts = Counter(answers)
    return min(counts, key=lambda answer: (-counts[answer], answer))


def _moved(groups: Collection[Sequence[int]]) -> list[tuple[int, int]]:
    """Pair each example with others of its group, at distances that are spread over the group."""
    total = sum(len(members) for members in groups)
    rounds = max(1, _MOST // total)
    pairs = []
    for members in groups:
        size = len(members)
        distances = [1 + turn * (size - 1) // rounds for turn in range(rounds)] if size > 1 else []
        pairs += [(one, members[(place + by) % size]) for by in distances for place, one in enumerate(members)]
    step = -(-len(pairs) // (2 * _MOST))
    return pairs[::step]

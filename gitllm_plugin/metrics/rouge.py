"""ROUGE-L over words of every script."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import regex

from gitllm_plugin.metrics.registry import metric
from gitllm_plugin.metrics.texts import fold

# Scripts that are written without spaces between words. Tibetan is not among them: it has a mark behind each syllable.
_UNSPACED = (
    *("Han", "Hiragana", "Katakana", "Bopomofo"),
    *("Thai", "Lao", "Khmer", "Myanmar", "Javanese", "Balinese"),
    *("Tai_Le", "New_Tai_Lue", "Tai_Tham", "Tai_Viet"),
)
_CHARACTER = "[[" + "".join(rf"\p{{{script}}}" for script in _UNSPACED) + r"]&&[\p{L}\p{Nl}]]"
# One character with the marks on it; the range of the kana is read whole, signs included, as it always was. Or a run of
# letters, digits and marks.
_WORD = regex.compile(rf"[[\u3040-\u30ff]{_CHARACTER}]\p{{M}}*|[[\p{{L}}\p{{M}}\p{{N}}]--{_CHARACTER}]+", regex.V1)
_PICTURE = regex.compile(r"\p{So}")
_LONG = 10**7
"""Pairs of characters above which :mod:`rouge_score`, whose table has a place for each pair of words, takes seconds."""


class Words:
    """The words of a text, in the place of rouge-score's tokenizer, whose words are runs of a-z and 0-9."""

    def tokenize(self, text: str) -> list[str]:
        """Split a cleaned text into words; one of pictures alone (emoji) into these."""
        text = fold(text)
        return _WORD.findall(text) or _PICTURE.findall(text)


@metric(
    "rouge_l",
    "rouge-score's F-measure, the M3IT paper's metric; without spaces (Chinese, Thai) characters are words",
    leads=("rouge_l",),
    kinds=("cider", "choice", "vqa", "exact_match"),  # M3IT's paper reports it throughout
)
def rouge_l(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Score each prediction by its longest common subsequence of words with the best of its references.

    The F-measure of the ``rouge-score`` package, without stemming, and in ASCII its very number. The package's words
    are runs of a-z and 0-9. Here they are runs of letters, digits and the marks on them, of any script; where a script
    has no spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese, ...) each character with its marks is.

    Args:
        predictions: N texts.
        references: N lists of one or more accepted texts.

    Returns:
        N floats between 0 and 1.

    Raises:
        ImportError: when ``rouge-score`` is not installed.
        ValueError: when the lengths differ.
    """
    return [
        max(_f_measure(reference, prediction) for reference in accepted)
        for prediction, accepted in zip(predictions, references, strict=True)
    ]


def _f_measure(reference: str, prediction: str) -> float:
    scorer = _load_scorer()
    if len(reference) * len(prediction) <= _LONG:
        return float(scorer.score(reference, prediction)["rougeL"].fmeasure)
    from rouge_score.scoring import fmeasure

    wanted, given = Words().tokenize(reference), Words().tokenize(prediction)
    common = longest_common_subsequence(wanted, given)
    return fmeasure(common / len(given), common / len(wanted)) if common else 0.0


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Count the words of the longest common subsequence, in a row of bits instead of a table.

    Of two texts of 100 KB in a fraction of a second: Hyyrö, Bit-parallel LCS-length computation revisited (2004).
    """
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    all_places = (1 << len(first)) - 1
    row = all_places
    for word in second:
        found = row & places.get(word, 0)
        row = (row + found | row - found) & all_places
    return len(first) - row.bit_count()


@lru_cache(maxsize=1)
def _load_scorer() -> Any:
    # Here and not at the top: the package imports nltk, which takes a second.
    try:
        from rouge_score import rouge_scorer
    except ImportError as error:
        raise ImportError("the metric rouge_l needs rouge-score: pip install rouge-score") from error
    return rouge_scorer.RougeScorer(["rougeL"], tokenizer=Words())

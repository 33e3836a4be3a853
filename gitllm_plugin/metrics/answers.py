"""Metrics of short answers: the same text, the same words, the same option."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from gitllm_plugin.metrics.registry import metric

# Chinese and Japanese are written without spaces; rouge-score would drop their characters.
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")
# "(C) a cat", "[C]", "C.", "C) a cat", "C: a cat" or "C" alone; a bare "A" may also begin a sentence.
_AT_START = re.compile(r"\s*(?:[(\[]([A-Za-z])[)\]]|([A-Za-z])(?:[.):](?:\s|$)|\s*$))")
_INSIDE = re.compile(r"[(\[]([A-Za-z])[)\]]|\b(?:option|answer is|answer:)\s+([A-Z])\b")


@metric(
    "exact_match",
    "equal to a reference, but for case, white space and a final period",
    leads=("exact_match",),
    kinds=("vqa",),
)
def exact_match(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Score 1.0 where the normalised prediction equals one of its normalised references, else 0.0.

    Args:
        predictions: N texts.
        references: N lists of accepted texts.

    Returns:
        N floats.

    Raises:
        ValueError: when the lengths differ.
    """
    return [
        float(normalize(prediction) in {normalize(reference) for reference in accepted})
        for prediction, accepted in zip(predictions, references, strict=True)
    ]


def normalize(text: str) -> str:
    """Write in lower case, with each run of white space as one space, none around, and no period at the end."""
    return " ".join(text.lower().split()).rstrip(".").rstrip()


@metric("option_accuracy", "the same option: by letter, `(C) a cat`, else by its text", leads=("choice",))
def option_accuracy(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Score 1.0 where prediction and reference name the same option, by letter or by text, else 0.0.

    Options are written ``(C) a cat``, as M3IT writes them. Where the prediction or the reference names no letter, the
    text of the options is compared.

    Args:
        predictions: N texts.
        references: N lists of right answers.

    Returns:
        N floats.

    Raises:
        ValueError: when the lengths differ.
    """
    return [
        float(any(_same_option(prediction, reference) for reference in accepted))
        for prediction, accepted in zip(predictions, references, strict=True)
    ]


def option_letter(text: str) -> str | None:
    """Give the letter, in upper case, of the option that a text names; None where it names none."""
    found = _AT_START.match(text) or _INSIDE.search(text)
    return (found[1] or found[2]).upper() if found else None


def _same_option(prediction: str, reference: str) -> bool:
    letters = option_letter(prediction), option_letter(reference)
    if None not in letters:
        return letters[0] == letters[1]
    return normalize(_without_letter(prediction)) == normalize(_without_letter(reference))


def _without_letter(text: str) -> str:
    found = _AT_START.match(text)
    return text[found.end() :] if found and found.end() < len(text) else text


@metric(
    "rouge_l",
    "rouge-score's F-measure, the M3IT paper's metric; Chinese and Japanese characters are words",
    leads=("rouge_l",),
    kinds=("cider", "choice", "vqa", "exact_match"),  # M3IT's paper reports it throughout
)
def rouge_l(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Score each prediction by its longest common subsequence of words with the best of its references.

    The F-measure of the ``rouge-score`` package, without stemming. The package's words are runs of a-z and 0-9; here
    each Chinese or Japanese character is a word besides.

    Args:
        predictions: N texts.
        references: N lists of one or more accepted texts.

    Returns:
        N floats between 0 and 1.

    Raises:
        ImportError: when ``rouge-score`` is not installed.
        ValueError: when the lengths differ.
    """
    scorer = _load_scorer()
    return [
        max(float(scorer.score(_spell(reference), _spell(prediction))["rougeL"].fmeasure) for reference in accepted)
        for prediction, accepted in zip(predictions, references, strict=True)
    ]


def _spell(text: str) -> str:
    """Write every Chinese or Japanese character as a word that the package keeps."""
    return _CJK.sub(lambda found: f" u{ord(found[0]):x} ", text)


@lru_cache(maxsize=1)
def _load_scorer() -> Any:
    # Here and not at the top: the package imports nltk, which takes a second.
    try:
        from rouge_score import rouge_scorer
    except ImportError as error:
        raise ImportError("the metric rouge_l needs rouge-score: pip install rouge-score") from error
    return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)

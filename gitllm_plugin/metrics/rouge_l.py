"""ROUGE-L, the metric of the M3IT paper, as the ``rouge-score`` package computes it."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

# Chinese and Japanese are written without spaces; the package would drop their characters.
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")


def rouge_l(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Scores each prediction by its longest common subsequence of words with the best of its references.

    The F-measure, without stemming. The package's words are runs of a-z and 0-9; here each Chinese or Japanese
    character is a word besides.

    Args:
        predictions: N texts.
        references: N lists of one or more accepted texts.

    Returns:
        N floats between 0 and 1.

    Raises:
        ImportError: if ``rouge-score`` is not installed.
        ValueError: if the lengths differ.
    """
    scorer = _load_scorer()
    return [
        max(float(scorer.score(_spell(reference), _spell(prediction))["rougeL"].fmeasure) for reference in accepted)
        for prediction, accepted in zip(predictions, references, strict=True)
    ]


def _spell(text: str) -> str:
    """The text with every Chinese or Japanese character as a word that the package keeps."""
    return _CJK.sub(lambda found: f" u{ord(found[0]):x} ", text)


@lru_cache(maxsize=1)
def _load_scorer() -> Any:
    # Here and not at the top: the package imports nltk, which takes a second.
    try:
        from rouge_score import rouge_scorer
    except ImportError as error:
        raise ImportError("the metric rouge_l needs rouge-score: pip install rouge-score") from error
    return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)

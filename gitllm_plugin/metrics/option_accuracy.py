"""Whether the right option of a multiple-choice question was chosen."""

import re
from collections.abc import Sequence

from gitllm_plugin.metrics.exact_match import normalize

# "(C) a cat", "[C]", "C.", "C) a cat", "C: a cat" or "C" alone; a bare "A" may also begin a sentence.
_AT_START = re.compile(r"\s*(?:[(\[]([A-Za-z])[)\]]|([A-Za-z])(?:[.):](?:\s|$)|\s*$))")
_INSIDE = re.compile(r"[(\[]([A-Za-z])[)\]]|\b(?:option|answer is|answer:)\s+([A-Z])\b")


def option_accuracy(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Scores 1.0 where prediction and reference name the same option, by letter or by text, else 0.0.

    Options are written ``(C) a cat``, as M3IT writes them. Where the prediction or the reference names no letter, the
    text of the options is compared.

    Args:
        predictions: N texts.
        references: N lists of right answers.

    Returns:
        N floats.

    Raises:
        ValueError: if the lengths differ.
    """
    return [
        float(any(_same_option(prediction, reference) for reference in accepted))
        for prediction, accepted in zip(predictions, references, strict=True)
    ]


def option_letter(text: str) -> str | None:
    """The letter, in upper case, of the option that a text names; None where it names none."""
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

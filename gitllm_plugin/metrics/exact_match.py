"""Whether a prediction is one of the accepted answers."""

from collections.abc import Sequence


def exact_match(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Scores 1.0 where the normalised prediction equals one of its normalised references, else 0.0.

    Args:
        predictions: N texts.
        references: N lists of accepted texts.

    Returns:
        N floats.

    Raises:
        ValueError: if the lengths differ.
    """
    return [
        float(normalize(prediction) in {normalize(reference) for reference in accepted})
        for prediction, accepted in zip(predictions, references, strict=True)
    ]


def normalize(text: str) -> str:
    """Lower case, each run of white space one space, none around, and no period at the end."""
    return " ".join(text.lower().split()).rstrip(".").rstrip()

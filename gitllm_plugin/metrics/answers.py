"""Short answers: the same text."""

from collections.abc import Sequence

from gitllm_plugin.metrics.registry import metric
from gitllm_plugin.metrics.texts import fold


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
    return " ".join(fold(text).split()).rstrip(".").rstrip()

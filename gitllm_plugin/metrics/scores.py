"""What a set of predictions scored."""

from dataclasses import dataclass, field


@dataclass
class Scores:
    """Scores of a set of N examples.

    Attributes:
        over_all: metric -> score of the set.
        by_example: metric -> N scores.
        skipped: metric -> why it could not be computed.
        tokenizer: what split captions into words; empty where nothing did.
    """

    over_all: dict[str, float] = field(default_factory=dict)
    by_example: dict[str, list[float]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    tokenizer: str = ""

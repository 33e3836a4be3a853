"""From scored examples to what is reported: one entry per example, means, a table."""

from collections.abc import Sequence
from typing import Any

Example = dict[str, Any]


def unique_by_id(examples: Sequence[Example]) -> list[Example]:
    """Examples in the order of configuration and id (numbers by value), each pair once.

    A sampler that pads a distributed split to equal shares repeats some.
    """
    unique = {(str(example["config"]), str(example["instance_id"])): example for example in examples}
    return [unique[key] for key in sorted(unique, key=lambda key: (key[0], len(key[1]), key[1]))]


def by_config(examples: Sequence[Example]) -> dict[str, list[Example]]:
    """Examples by the configuration they belong to, in the order of their names."""
    names = sorted({str(example["config"]) for example in examples})
    return {name: [example for example in examples if str(example["config"]) == name] for name in names}


def _mean(examples: Sequence[Example], metric: str) -> float:
    return sum(example[metric] for example in examples) / len(examples)


def average_scores(examples: Sequence[Example], metrics: Sequence[str]) -> dict[str, float]:
    """Means of per-example scores.

    Args:
        examples: At least one; each with a score under every name in `metrics`.
        metrics: Names of the scores.

    Returns:
        `num_examples`, each metric's mean over all examples, and `{config}/{metric}` over a configuration's.
    """
    averages: dict[str, float] = {"num_examples": len(examples)}
    averages |= {metric: _mean(examples, metric) for metric in metrics}
    for config, members in by_config(examples).items():
        averages |= {f"{config}/{metric}": _mean(members, metric) for metric in metrics}
    return averages


def format_table(examples: Sequence[Example], metrics: Sequence[str]) -> str:
    """A text table with a row per configuration and one for all examples; scores in percent."""
    groups = by_config(examples)
    rows = [["config", "examples", *metrics]]
    for name, members in [*groups.items(), ("all", list(examples))]:
        rows.append([name, str(len(members)), *(f"{100 * _mean(members, metric):.1f}" for metric in metrics)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        numbers = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *numbers]).rstrip())
    return "\n".join(lines)

"""From the examples of a split to its scores: of configurations, of M3IT's categories and of all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gitllm_plugin.m3it.catalog import BY_NAME
from gitllm_plugin.metrics import DEFAULT, MetricsOf, Scores, metrics_of_kind, score, score_controls, why_not
from gitllm_plugin.tables import Table

Example = dict[str, Any]

ALL = "all"


def catalog_metrics(config: str) -> Sequence[str]:
    """Name a configuration's metrics, the one that its field reports first; the default where it is not known."""
    return metrics_of_kind(BY_NAME[config].kind) if config in BY_NAME else DEFAULT


def catalog_category(config: str) -> str | None:
    """Name the category in which a configuration is counted; ``chinese`` and ``video`` stand apart. None: not known."""
    entry = BY_NAME.get(config)
    if entry is None:
        return None
    if entry.language == "zh":
        return "chinese"
    return "video" if entry.modality == "video" else entry.category


@dataclass(frozen=True)
class Row:
    """A line of the table of scores.

    Attributes:
        name: a configuration, a category, or :data:`ALL`.
        kind: ``config``, ``category``, :data:`ALL` or ``control``.
        num_examples: how many were scored.
        scores: metric -> score. Of several configurations it is their mean, weighted by their examples.
        primary: the score by the configuration's first metric; of several, their plain mean. None without metrics.
    """

    name: str
    kind: str
    num_examples: int
    scores: dict[str, float]
    primary: float | None = None


@dataclass
class SplitScores:
    """What a split scored.

    Attributes:
        rows: configurations in the order of their names, then categories, then all.
        skipped: metric, or configuration/metric, -> why it could not be computed.
        remarks: configuration/metric -> what a reader of its score must know.
        tokenizer: what split captions into words; empty where nothing did.
        controls: what all examples score without a look at the pictures.
    """

    rows: list[Row]
    controls: list[Row] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    tokenizer: str = ""

    def as_dict(self) -> dict[str, float]:
        """Give scores by name: ``{metric}`` over all, ``{config}/{metric}``, ``{category}/{metric}``, ``primary``."""
        flat: dict[str, float] = {}
        for row in self.rows:
            prefix = "" if row.kind == ALL else f"{row.name}/"
            flat |= {f"{prefix}{metric}": value for metric, value in row.scores.items()}
            if row.kind == ALL:
                flat |= {"num_examples": row.num_examples}
                flat |= {} if row.primary is None else {"primary": row.primary}
        return flat

    def notes(self) -> dict[str, Any]:
        """Give what a reader of the scores must know: metrics that were not computed or say little, what split
        captions, and what is scored without a look at the pictures.
        """
        controls = {row.name: row.scores for row in self.controls}
        notes = {
            "skipped_metrics": self.skipped,
            "notes": self.remarks,
            "tokenizer": self.tokenizer,
            "controls": controls,
        }
        return {name: value for name, value in notes.items() if value}


def unique_by_id(examples: Sequence[Example]) -> list[Example]:
    """Put examples in the order of configuration and id (numbers by value), each pair once.

    A sampler that pads a distributed split to equal shares repeats some.
    """
    unique = {(str(example["config"]), str(example["instance_id"])): example for example in examples}
    return [unique[key] for key in sorted(unique, key=lambda key: (key[0], len(key[1]), key[1]))]


def score_split(
    examples: Sequence[Example], metrics_of: MetricsOf, category_of: Callable[[str], str | None] = lambda config: None
) -> SplitScores:
    """Score every configuration by its metrics, and write each example's own scores into it.

    Args:
        examples: at least one; each with ``config``, ``prediction`` and ``references``.
        metrics_of: configuration -> names of metrics, the first of which is the primary one.
        category_of: configuration -> category, or None.
    """
    rows, report = [], SplitScores([])
    controls: dict[str, list[Row]] = {}
    for config in sorted({str(example["config"]) for example in examples}):
        members = [example for example in examples if str(example["config"]) == config]
        names = metrics_of(config)
        scores = _score(members, names)
        # What this machine lacks it lacks for all; other reasons are the configuration's own.
        report.skipped |= {name if why_not(name) else f"{config}/{name}": why for name, why in scores.skipped.items()}
        report.remarks |= {f"{config}/{name}": note for name, note in scores.notes.items()}
        report.tokenizer = report.tokenizer or scores.tokenizer
        computed = {name: scores.over_all[name] for name in names if name in scores.over_all}
        rows.append(Row(config, "config", len(members), computed, next(iter(computed.values()), None)))
        for control, scored in _controls(members, list(computed)).items():
            controls.setdefault(control, []).append(Row(control, "control", len(members), scored))
    categories: dict[str, list[Row]] = {}
    for row in rows:
        category = category_of(row.name)
        if category is not None and category not in {other.name for other in rows}:
            categories.setdefault(category, []).append(row)
    merged = [_merge(name, "category", members) for name, members in sorted(categories.items())]
    report.rows = [*rows, *merged, _merge(ALL, ALL, rows)]
    # Beside the scores of all stands what is of all.
    report.controls = [
        _merge(control, "control", members) for control, members in controls.items() if len(members) == len(rows)
    ]
    return report


def score_table(report: SplitScores) -> Table:
    """Lay out a row per configuration, category, for all, and per control; in percent."""
    metrics = list(dict.fromkeys(metric for row in report.rows for metric in row.scores))
    rows = []
    for row in (*report.rows, *report.controls):
        numbers = [f"{100 * row.scores[metric]:.1f}" if metric in row.scores else "-" for metric in metrics]
        name = row.name if row.kind in ("config", "control") else f"**{row.name}**"
        rows.append([name, f"{row.num_examples:,}", *numbers])
    return Table(["", "examples", *metrics], rows, numbers=range(1, len(metrics) + 2))


def _score(examples: Sequence[Example], names: Sequence[str]) -> Scores:
    if not names:
        return Scores()
    scores = score(
        names, [example["prediction"] for example in examples], [example["references"] for example in examples]
    )
    for name, values in scores.by_example.items():
        for example, value in zip(examples, values, strict=True):
            example[name] = value
    return scores


def _controls(examples: Sequence[Example], names: Sequence[str]) -> dict[str, dict[str, float]]:
    return score_controls(
        names,
        [str(example.get("question", "")) for example in examples],
        [example["prediction"] for example in examples],
        [example["references"] for example in examples],
    )


def _merge(name: str, kind: str, rows: Sequence[Row]) -> Row:
    def mean(metric: str) -> float:
        having = [row for row in rows if metric in row.scores]
        return sum(row.scores[metric] * row.num_examples for row in having) / sum(row.num_examples for row in having)

    metrics = dict.fromkeys(metric for row in rows for metric in row.scores)
    primary = [row.primary for row in rows if row.primary is not None]
    return Row(
        name=name,
        kind=kind,
        num_examples=sum(row.num_examples for row in rows),
        scores={metric: mean(metric) for metric in metrics},
        primary=sum(primary) / len(primary) if primary else None,
    )


def title_of(split: str, epoch: int | str, skip_reload: bool) -> str:
    """Name what was evaluated.

    Args:
        split: its name.
        epoch: the runner's number, or ``best``, which an evaluation alone says too.
        skip_reload: whether the weights of the best epoch were not loaded.
    """
    if isinstance(epoch, int):
        return f"{split}, after epoch {epoch}"
    return split if skip_reload else f"{split}, {epoch} epoch"


def remarks_on(report: SplitScores) -> list[str]:
    """Write which scores are missing and why, and what a reader of others must know."""
    missing = [f"{name} was not computed: {reason}." for name, reason in report.skipped.items()]
    return missing + [f"{name}: {note}." for name, note in report.remarks.items()]


def one_line(report: SplitScores, loss: float | None) -> str:
    """Write what all examples score, in percent, and their loss."""
    scores = [f"{name} {100 * value:.1f}" for name, value in report.rows[-1].scores.items()]
    return ", ".join([*scores, *([] if loss is None else [f"loss {loss:.4f}"])])


def describe(report: SplitScores, title: str, loss: float | None, skipped: int = 0) -> str:
    """Write the scores as a page in Markdown; ``skipped`` examples were not evaluated."""
    parts: list[str] = [f"# {title}", score_table(report).markdown()]
    if skipped:
        total = report.rows[-1].num_examples + skipped
        parts.append(f"{skipped:,} of {total:,} examples could not be used and were skipped; the log names them.")
    if loss is not None:
        parts.append(f"Loss per token: {loss:.4f}.")
    parts += remarks_on(report)
    if report.tokenizer:
        parts.append(f"Captions were split into words by: {report.tokenizer}.")
    parts.append("Rows of several configurations are means, weighted by their examples. Scores are in percent.")
    return "\n\n".join(parts) + "\n"

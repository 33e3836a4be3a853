"""The demonstration's page: results, controls, pictures, times, environment."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.easyvqa.controls import score_best_guesses
from examples.easyvqa.data import CONFIGS, SHUFFLED, read_rows
from examples.easyvqa.figures import choose_examples, draw_predictions
from examples.easyvqa.runs import read_accuracies, read_predictions, read_versions
from gitllm_plugin.curves.draw import draw_training_loss
from gitllm_plugin.curves.read import read_run
from gitllm_plugin.tables import Table

PAGE, PREDICTIONS_PICTURE, LOSS_PICTURE = "README.md", "predictions.png", "loss.png"

_NAMES = {"caption": "captions", "open": "open questions", "yesno": "yes/no questions"}


@dataclass(frozen=True)
class Result:
    """A line of the table; parts of 1.

    Attributes:
        config: the configuration.
        examples: how many of its test examples were evaluated.
        accuracy: exact match of the model.
        blind_guess: exact match of the best guess from the question alone.
        shuffled: exact match of the model when every picture is another example's; None where not measured.
    """

    config: str
    examples: int
    accuracy: float
    blind_guess: float
    shuffled: float | None


def collect_results(
    data: Path, accuracies: Mapping[str, float], predictions: Sequence[Mapping[str, Any]]
) -> list[Result]:
    """Put the evaluation's scores beside the controls.

    Args:
        data: the folder with the splits' JSONL files.
        accuracies: exact match by configuration.
        predictions: the evaluated examples, each with its ``config``.
    """
    counts = Counter(prediction["config"] for prediction in predictions)
    evaluated = {prediction["instance_id"] for prediction in predictions}
    results = []
    for config in CONFIGS:
        train, test = (read_rows(data / split / f"{config}.jsonl") for split in ("train", "test"))
        results.append(
            Result(
                config=config,
                examples=counts[config],
                accuracy=accuracies[config],
                blind_guess=score_best_guesses(train, [row for row in test if row["id"] in evaluated]),
                shuffled=accuracies.get(config + SHUFFLED),
            )
        )
    return results


def format_table(results: Sequence[Result]) -> str:
    """Give the results as a Markdown table that is also readable as it stands."""
    header = ("configuration", "test examples", "exact match", "blind guess", "shuffled images")
    rows = []
    for result in results:
        shuffled = "-" if result.shuffled is None else f"{result.shuffled:.1%}"
        scores = (f"{result.accuracy:.1%}", f"{result.blind_guess:.1%}", shuffled)
        rows.append((_NAMES[result.config], f"{result.examples:,}", *scores))
    return Table(header, rows, numbers=range(1, len(header))).markdown()


def write_report(
    output: Path,
    data: Path,
    training: Path,
    evaluation: Path,
    seconds: Mapping[str, float],
    commands: Sequence[str],
) -> list[Result]:
    """Write the page and its two pictures into ``output``.

    Args:
        output: the folder.
        data: the folder with the splits' JSONL files.
        training: the training run's folder.
        evaluation: the evaluation run's folder.
        seconds: how long each step took, in the order of the steps.
        commands: what trained and evaluated the model.

    Returns:
        The lines of the table.
    """
    predictions = read_predictions(evaluation)
    results = collect_results(data, read_accuracies(evaluation), predictions)
    draw_training_loss([read_run(training)], output / LOSS_PICTURE)
    _draw_predictions(data, predictions, output / PREDICTIONS_PICTURE)
    page = [
        "# GIT-LLM on easy-VQA",
        "SmolLM2-135M-Instruct and EfficientNet-Lite0, both frozen; trained are a projection and LoRA. "
        "Scores are exact matches on the test split.",
        format_table(results),
        _explain_controls(results),
        f"![Test pictures with question, answer and truth]({PREDICTIONS_PICTURE})",
        "Sixteen test examples, drawn by a fixed seed; right answers are green, wrong ones red.",
        f"![Training loss]({LOSS_PICTURE})",
        "## Commands\n\n```\n" + "\n".join(commands) + "\n```",
        "## Times\n\n" + "\n".join(f"- {step}: {format_seconds(value)}" for step, value in seconds.items()),
        "## Environment\n\n" + "\n".join(_describe_environment(read_versions(evaluation))),
        f"Training: `{training}`. Evaluation, with every answer: `{evaluation}`.",
    ]
    (output / PAGE).write_text("\n\n".join(page) + "\n", encoding="utf-8")
    return results


def format_seconds(seconds: float) -> str:
    """Seconds as people read them."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _draw_predictions(data: Path, predictions: Sequence[Mapping[str, Any]], path: Path) -> None:
    rows = [row for config in CONFIGS for row in read_rows(data / "test" / f"{config}.jsonl")]
    draw_predictions(choose_examples(predictions), {row["id"]: row["image_base64_str"] for row in rows}, path)


def _explain_controls(results: Sequence[Result]) -> str:
    yesno = next(result for result in results if result.config == "yesno")
    return (
        "*Blind guess*: the answer that the train split gives most often to the same question. "
        "*Shuffled images*: the same model and questions, with every picture swapped for another one. "
        f"Yes/no questions stand apart because guessing alone gets {yesno.blind_guess:.1%} of them."
    )


def _describe_environment(versions: Mapping[str, Any]) -> list[str]:
    shown = {key: value for key, value in versions.items() if key != "command" and value is not None}
    return [*(f"- {key}: {value}" for key, value in shown.items()), f"- CPU cores: {_count_cores()}"]


def _count_cores() -> int:
    """Cores that this process may use, which in a container can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

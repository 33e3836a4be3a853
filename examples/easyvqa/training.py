"""Trains and evaluates through the plugin's command line, unless that was done before."""

import time
from pathlib import Path

from examples.easyvqa.commands import run_module
from examples.easyvqa.paths import EVAL_CONFIG, OUTPUT, TRAIN_CONFIG, Cache
from examples.easyvqa.runs import BEST_CHECKPOINT, METRICS, newest_run
from gitllm_plugin.common.run_files import LATEST_EVALUATION, LATEST_RUN
from gitllm_plugin.experiments.record import StepRecord, fingerprint

TRAINING, EVALUATION = "training", "evaluation"

_RESUME_POINT = "checkpoint_latest.pth"
_FORCE = "to do it again: python -m examples.easyvqa.demo --fresh"


def train(record: StepRecord, cache: Cache, folder: Path = OUTPUT / "train") -> Path:
    """Train as the configuration says; a run that was interrupted goes on, a finished one is left as it is.

    Args:
        record: remembers what is finished.
        cache: where weights and data are.
        folder: ``run.output_dir`` of the configuration.

    Returns:
        The run's folder.
    """
    config = fingerprint(TRAIN_CONFIG)
    if record.get(TRAINING, "config") != config:
        record.start_over(TRAINING)
        record.note(TRAINING, config=config, began=time.time())
    run = record.get(TRAINING, "run")
    if run and (Path(run) / BEST_CHECKPOINT).is_file():
        print(f"  already trained: {run} ({_FORCE})", flush=True)
        return Path(run)
    command = train_command()
    if _has_resume_point(folder, record.get(TRAINING, "began")):
        print("  going on with the training that was interrupted", flush=True)
        command += ["--options", "run.resume_ckpt_path=auto"]
    with record.timed(TRAINING):
        run_module(command, cache)
    record.note(TRAINING, run=str(newest_run(folder, LATEST_RUN, BEST_CHECKPOINT)))
    return Path(record.get(TRAINING, "run"))


def evaluate(record: StepRecord, cache: Cache, training: Path, folder: Path = OUTPUT / "evaluate") -> Path:
    """Evaluate a training's best checkpoint, unless that very one was evaluated before.

    Args:
        record: remembers what is finished.
        cache: where weights and data are.
        training: the training's folder.
        folder: ``run.output_dir`` of the configuration.

    Returns:
        The evaluation's folder.
    """
    subject = f"{training} {fingerprint(EVAL_CONFIG, training / BEST_CHECKPOINT)}"
    if record.get(EVALUATION, "subject") != subject:
        record.start_over(EVALUATION)
        record.note(EVALUATION, subject=subject)
    run = record.get(EVALUATION, "run")
    if run and (Path(run) / METRICS).is_file():
        print(f"  already evaluated: {run} ({_FORCE})", flush=True)
        return Path(run)
    with record.timed(EVALUATION):
        run_module(evaluate_command(training), cache)
    record.note(EVALUATION, run=str(newest_run(folder, LATEST_EVALUATION, METRICS)))
    return Path(record.get(EVALUATION, "run"))


def train_command() -> list[str]:
    """Give the training, as ``python -m`` takes it."""
    return ["gitllm_plugin", "train", "--cfg-path", str(TRAIN_CONFIG)]


def evaluate_command(training: Path) -> list[str]:
    """Give the evaluation of a training, as ``python -m`` takes it."""
    checkpoint = f"model.finetuned={training / BEST_CHECKPOINT}"
    return ["gitllm_plugin", "evaluate", "--cfg-path", str(EVAL_CONFIG), "--options", checkpoint]


def _has_resume_point(folder: Path, began: float) -> bool:
    """Say whether a checkpoint was written since this training began: an older one may be another model's."""
    return any(path.stat().st_mtime >= began for path in folder.glob(f"*/{_RESUME_POINT}"))

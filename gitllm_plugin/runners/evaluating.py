"""Evaluating a run's model on a split, and the score that chooses the best epoch."""

import contextlib
import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from gitllm_plugin.common.files import storage_errors
from gitllm_plugin.common.weights import read_checkpoint
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.runners.parallel import Watchdog
from gitllm_plugin.runners.run import RunParts
from gitllm_plugin.runners.state import TrainingProgress, load_trainable_state
from gitllm_plugin.runners.trained_weights import trained_weights


@torch.no_grad()
def evaluate_split(
    parts: RunParts, task: Any, split: str, epoch: int | str, skip_reload: bool, watchdog: Watchdog
) -> dict | None:
    """Let a task evaluate the run's model, as it is, on a split.

    Args:
        parts: of the run.
        task: LAVIS's task.
        split: one of the data sets' splits.
        epoch: names the result files, by a number from 0, which people are told from 1.
        skip_reload: whether an ``epoch`` of ``best`` is only a name: the weights are those that were given.
        watchdog: watches, and is told of every batch.

    Returns:
        the task's metrics; None where the task has none, or gives them to rank 0 only.
    """
    model = parts.bare_model
    model.eval()
    loader = watchdog.batches(parts.loaders[split], f"the evaluation on {split}")
    task.before_evaluation(model=model, dataset=parts.splits[split])
    # Layers compiled for training would be compiled again for every length of an answer.
    compiled = parts.run_cfg.compile
    uncompiled = torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()
    with parts.autocast(), uncompiled:
        results = task.evaluation(model, loader, cuda_enabled=parts.device.type == "cuda")
    if results is None:
        return None
    named = epoch + 1 if isinstance(epoch, int) else epoch  # in files as in the log
    with storage_errors("a file of the evaluation"):
        return task.after_evaluation(val_result=results, split_name=split, epoch=named, skip_reload=skip_reload)


def load_best(parts: RunParts, model: nn.Module) -> None:
    """Load the run's best weights; where there are none, say that the weights stay as they are.

    Raises:
        ConfigError: they do not fit the model.
    """
    path = parts.checkpoints.best
    if path.is_file():
        load_trainable_state(model, read_checkpoint(path)["model"], str(path))
        logging.info("Testing %s.", path)
    else:
        logging.info("There is no %s in this run's folder: evaluating the weights as they are.", path.name)


def use_trained_weights(parts: RunParts, skip_reload: bool) -> None:
    """See to it that an evaluation without a training evaluates trained weights, see :func:`trained_weights`.

    Args:
        parts: of the run; where it trains or has trained, the weights are its own.
        skip_reload: whether the run's best weights will not be loaded.

    Raises:
        ConfigError: see :func:`trained_weights`.
    """
    trains = "optimizer" in vars(parts)  # which is built when it is asked for
    if not trains and not parts.has_trained_weights and (skip_reload or not parts.checkpoints.best.is_file()):
        trained_weights(parts.bare_model, parts.config)
        parts.has_trained_weights = True


def note_score(progress: TrainingProgress, stats: Mapping[str, Any], epoch: int, task: Any) -> None:
    """Keep the score of an epoch, if it is one of the best.

    Args:
        progress: changed in place.
        stats: what ``task`` gave.
        epoch: counted from 0.
        task: named in the error.

    Raises:
        ConfigError: the task gives no score.
    """
    if "agg_metrics" not in stats:
        raise ConfigError(f"Task {type(task).__name__} gives no 'agg_metrics' to choose the best epoch by")
    score = float(stats["agg_metrics"])
    if math.isnan(score):
        logging.warning("The validation score of epoch %d is not a number.", epoch + 1)
    progress.best.add(score, epoch, progress.position.steps)

"""Texts that a model cannot read, however short their questions, are looked for before a run computes anything."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from gitllm_plugin.protocols import FittedData, FittingModel, ReadingTask, offers

_USUAL_LENGTH = 30  # of what LAVIS's tasks generate where ``run.max_len`` is missing


def read_in_evaluation(task: Any, run_cfg: Any) -> tuple[bool, int]:
    """Find whether an evaluation lets the model read answers, and how many tokens it may generate; 0 for none.

    A task that is no :class:`~gitllm_plugin.protocols.ReadingTask` may read and write anything.
    """
    if offers(task, ReadingTask):
        return task.evaluation_reads()
    return True, int(run_cfg.get("max_len") or _USUAL_LENGTH)


def fit_texts(
    model: nn.Module, task: Any, datasets: Mapping[str, Mapping[str, Any]], run_cfg: Any, splits: Sequence[str]
) -> None:
    """Let data leave out, or refuse, what the model cannot read.

    Args:
        model: not wrapped.
        task: LAVIS's; one that is no :class:`~gitllm_plugin.protocols.ReadingTask` may read and write anything.
        datasets: by data set name, then by split.
        run_cfg: the run's.
        splits: those that are used.

    Raises:
        DataError: there are such texts, and the data set's ``on_error`` is ``stop``.
    """
    if not offers(model, FittingModel):
        return
    answers, new_tokens = read_in_evaluation(task, run_cfg)
    evaluated = {*run_cfg.valid_splits, *run_cfg.test_splits}
    for by_split in datasets.values():
        for split, dataset in by_split.items():
            if split not in splits or not offers(dataset, FittedData):
                continue
            trained = split in run_cfg.train_splits
            written = new_tokens if split in evaluated else 0
            dataset.use_text_rule(partial(model.text_rule, answers=answers or trained, new_tokens=written))

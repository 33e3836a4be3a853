"""Evaluating a run: after each epoch, at its end, or alone."""

import contextlib
import logging
import math
from typing import Any

import torch
from lavis.common.dist_utils import main_process

from gitllm_plugin.common import ranks
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.runners import precision
from gitllm_plugin.runners.evaluations import is_tested, note_evaluation
from gitllm_plugin.runners.interrupts import StopRequest
from gitllm_plugin.runners.run_folder import storage_errors
from gitllm_plugin.runners.saving import SavingRunner
from gitllm_plugin.runners.tracking import Trackers


class EvaluatingRunner(SavingRunner):
    """A runner's evaluations.

    Attributes:
        stop: Signals that end the run; at once where nothing is lost by it, as in an evaluation.
        trackers: Where numbers are sent to, besides the run's own files.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        self.stop = StopRequest()
        self.trackers: Trackers | None = None
        super().__init__(*args, **kwargs)

    def _autocast(self):
        return precision.autocast(self.device, self.dtype)

    @torch.no_grad()
    def eval_epoch(self, split_name: str, cur_epoch: int | str, skip_reload: bool = False) -> dict | None:
        """Evaluate on one split.

        Repairs: moves batches to a GPU whether there is one or not, and evaluates in another precision than
        it trained in.

        Args:
            split_name: The split.
            cur_epoch: Names the result files; `best` also loads the best checkpoint.
            skip_reload: Keep the weights as they are even for `best`.

        Returns:
            The task's metrics; None where the task has none, or gives them to rank 0 only.
        """
        model = self.unwrap_dist_model(self.model)
        if cur_epoch == "best" and not skip_reload:
            self._reload_best_model(model)
        model.eval()
        logging.info("Evaluating on %s.", split_name)
        loader = self.dataloaders[split_name]
        self.task.before_evaluation(model=model, dataset=self.datasets[split_name])
        with self._autocast(), self._uncompiled():
            results = self.task.evaluation(model, loader, cuda_enabled=self.cuda_enabled)
        if results is None:
            return None
        with storage_errors():
            return self.task.after_evaluation(
                val_result=results, split_name=split_name, epoch=cur_epoch, skip_reload=skip_reload
            )

    def _uncompiled(self) -> contextlib.AbstractContextManager:
        """Layers compiled for training would be compiled again for every length of an answer."""
        return torch.compiler.set_stance("force_eager") if self.config.run_cfg.compile else contextlib.nullcontext()

    def evaluate(self, cur_epoch: int | str = "best", skip_reload: bool = False) -> dict[str, dict | None]:
        """Evaluate on `run.test_splits`, without training.

        Returns:
            Metrics by split.

        Raises:
            ConfigError: No split to evaluate on.
        """
        if not self.test_splits and not (self.evaluate_only and self.valid_splits):
            raise ConfigError("There is nothing to evaluate on: run.test_splits is empty")
        self._check_splits([*self.test_splits])
        self._describe_run("latest_evaluation")
        return self._test(cur_epoch, skip_reload)

    def _test(self, cur_epoch: int | str, skip_reload: bool) -> dict[str, dict | None]:
        logs = {}
        for split in self.test_splits:
            logs[split] = self.eval_epoch(split, cur_epoch, skip_reload)
            if logs[split] is not None:
                self._log_evaluation(split, logs[split])
        return logs

    def _is_tested(self) -> bool:
        return ranks.from_first_rank(lambda: is_tested(self.output_dir, self.position, self.test_splits))

    def _validate_only(self) -> None:
        for split in self.valid_splits:
            stats = self.eval_epoch(split, "best", skip_reload=True)
            if stats is not None:
                self.log_stats(stats, split)

    def _validate(self, epoch: int) -> None:
        """Evaluate on every validation split, keep the best weights, and note that it was done."""
        deciding = "val" if "val" in self.valid_splits else self.valid_splits[0]
        with self.stop.at_once():
            for split in self.valid_splits:
                # Tasks may give their metrics to rank 0 alone, or others to each rank: rank 0's decide.
                stats = ranks.broadcast_object(self.eval_epoch(split, epoch))
                if stats is None:
                    continue
                if split == deciding:
                    self._note_score(stats, epoch)
                self._log_evaluation(split, {**stats, "best_epoch": self.best_epoch})
        self.progress.validation_due = False
        self._save()

    def _note_score(self, stats: dict[str, Any], epoch: int) -> None:
        """Repairs: the best score starts at 0, so that a run with negative scores has no best checkpoint."""
        if "agg_metrics" not in stats:
            task = type(self.task).__name__
            raise ConfigError(f"Task {task} gives no 'agg_metrics' to choose the best epoch by")
        score = float(stats["agg_metrics"])
        if math.isnan(score):
            logging.warning("The validation score of epoch %d is not a number.", epoch + 1)
        self.progress.best.add(score, epoch, self.position.steps)

    @main_process
    def _log_evaluation(self, split: str, stats: dict[str, Any]) -> None:
        self.log_stats(stats, split)
        note_evaluation(self.output_dir, split, self.position, stats)
        if self.trackers is not None:
            self.trackers.log(self.position.steps, split, stats)

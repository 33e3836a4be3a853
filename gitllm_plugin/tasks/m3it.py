"""Task ``m3it``: instruction tuning with validation loss, generated answers and their scores."""

import json
import logging
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lavis.common.registry import registry
from lavis.tasks.base_task import BaseTask

from gitllm_plugin.common import ranks
from gitllm_plugin.common.files import atomic_path, write_atomically
from gitllm_plugin.common.loading import move_batch, num_batches, num_samples
from gitllm_plugin.common.progress import Progress
from gitllm_plugin.config import read
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.metrics import metrics_by_config
from gitllm_plugin.protocols import CountedData, offers, weight_of_loss
from gitllm_plugin.tasks.host_task import inference
from gitllm_plugin.tasks.picture_page import choose_examples, write_picture_page
from gitllm_plugin.tasks.scores import (
    SplitScores,
    catalog_category,
    catalog_metrics,
    describe,
    one_line,
    remarks_on,
    score_split,
    title_of,
    unique_by_id,
)
from gitllm_plugin.tasks.settings import LOSS, M3ITTaskSettings, choose_agg_metric


@dataclass
class EvaluationResult:
    """What one rank found on its part of a split.

    Attributes:
        examples: one dict per example.
        loss_sum: sum of the loss over supervised tokens, each times its weight.
        loss_weight: sum of these weights; without weights the number of tokens.
        logged: sums of what else the task computes, by the same weights.
    """

    examples: list[dict[str, Any]] = field(default_factory=list)
    loss_sum: float = 0.0
    loss_weight: float = 0.0
    logged: dict[str, float] = field(default_factory=dict)


@registry.register_task("m3it")
class M3ITTask(BaseTask):
    """Trains on answers, and evaluates by loss and by scoring generated answers.

    Args:
        settings: what the ``run`` node says, or its defaults.
        category_of: configuration -> category, or None.
    """

    Settings = M3ITTaskSettings

    def __init__(
        self,
        settings: M3ITTaskSettings | None = None,
        category_of: Callable[[str], str | None] = catalog_category,
    ):
        super().__init__()
        settings = settings or M3ITTaskSettings()
        metrics: Any = settings.metrics
        self.metrics_of = metrics_by_config(catalog_metrics if metrics == "m3it" else metrics)
        self.generates = bool(metrics)
        self.agg_metric = choose_agg_metric(metrics, settings.agg_metric)
        self.valid_loss = settings.valid_loss
        self.max_len = settings.max_len
        self.min_len = settings.min_len
        self.num_beams = settings.num_beams
        self.pictures = settings.pictures
        self.log_freq = settings.log_freq
        self._told: set[str] = set()
        self.category_of = category_of
        self._dataset: Any = None

    @classmethod
    def setup_task(cls, cfg: Any) -> "M3ITTask":
        """Build the task from ``cfg.run_cfg``.

        Raises:
            ConfigError: naming everything that is wrong of what the task reads.
        """
        return cls(read(cls.Settings, "run", cfg.run_cfg, closed=False))

    def before_evaluation(self, model: Any, dataset: Any, **kwargs: Any) -> None:
        """Remember the split, for its pictures and the number of its examples."""
        super().before_evaluation(model, dataset, **kwargs)
        self._dataset = dataset

    def evaluation_reads(self) -> tuple[bool, int]:
        """Say whether answers are read, for the loss, and how many tokens may be generated."""
        return self.valid_loss, self.max_len if self.generates else 0

    def train_outputs(self, model: Any, samples: dict[str, Any]) -> dict[str, Any]:
        """Compute ``loss``, a scalar, the mean over the batch's ``num_supervised_tokens``, maybe a weighted one."""
        return model(samples)

    @torch.no_grad()
    def valid_step(self, model: Any, samples: dict[str, Any]) -> list[dict[str, Any]]:
        """Answer a batch.

        Returns:
            per example ``instance_id``, ``config``, ``question``, ``prompt``, ``prediction`` (None without metrics) and
            ``references``.
        """
        count = num_samples(samples)
        predictions: list[str | None] = [None] * count
        if self.generates:
            predictions = model.predict_answers(
                samples, max_len=self.max_len, min_len=self.min_len, num_beams=self.num_beams
            )
        return [
            {
                "instance_id": samples["instance_id"][i],
                "config": samples["config"][i],
                "question": samples["question"][i],
                "prompt": samples["text_input"][i],
                "prediction": predictions[i],
                "references": list(samples["references"][i]),
            }
            for i in range(count)
        ]

    @torch.no_grad()
    def evaluation(self, model: Any, data_loader: Any, cuda_enabled: bool = True) -> EvaluationResult:
        """Compute loss and answers of this rank's part of a split.

        Repairs the host's: it always moves batches to a GPU and prints every tenth.

        Args:
            model: in evaluation mode, not wrapped.
            data_loader: gives samples of the ``m3it`` data set.
            cuda_enabled: not used: batches go where the model is.
        """
        result = EvaluationResult()
        sums: dict[str, torch.Tensor] = {}
        with (
            self.evaluating(model),
            Progress("evaluation", num_batches(data_loader), log_freq=self.log_freq) as progress,
        ):
            for samples in data_loader:
                if not num_samples(samples):
                    continue  # nothing in it could be read
                samples = move_batch(samples, model, model.device)
                if self.valid_loss:
                    outputs = self.valid_outputs(model, samples)
                    weight = weight_of_loss(outputs)
                    # Added up where it is: reading it would wait for the device.
                    for name, value in {LOSS: outputs["loss"], **outputs.get("logged", {})}.items():
                        sums[name] = value.double() * weight + sums.get(name, 0.0)
                    result.loss_weight += weight
                result.examples += self.valid_step(model, samples)
                progress.update(samples=num_samples(samples))
        if sums:
            result.logged = dict(zip(sums, torch.stack([*sums.values()]).tolist(), strict=True))
            result.loss_sum = result.logged.pop(LOSS)
        return result

    def evaluating(self, model: Any) -> AbstractContextManager[None]:
        """Give the context that a whole evaluation runs in."""
        return inference(model)

    def valid_outputs(self, model: Any, samples: dict[str, Any]) -> Mapping[str, Any]:
        """Compute the loss of a batch of an evaluation, as :meth:`train_outputs` gives it."""
        return model(samples)

    def after_evaluation(
        self,
        val_result: EvaluationResult,
        split_name: str,
        epoch: int | str,
        skip_reload: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Gather all ranks' results, score each example once, and write predictions and scores.

        Written into the run's folder are ``result/{split}_epoch{epoch}.jsonl``, ``{split}_metrics.json``,
        ``{split}_results.md`` and, where the data can be read by number, ``{split}_pictures.html``.

        Args:
            val_result: this rank's.
            split_name: the split.
            epoch: of the weights, as LAVIS counts, from 0; or ``best``.
            skip_reload: whether ``best`` is only a name: the weights are those that were given.
            **kwargs: not used.

        Returns:
            on every rank ``loss``, each metric over all examples, as ``{config}/{metric}`` and as
            ``{category}/{metric}``, ``primary``, ``num_examples``, and ``agg_metrics``, of which higher is better.

        Raises:
            DataError: the split is empty.
            ConfigError: ``agg_metric`` is not among the scores.
        """
        parts = ranks.gather_objects(val_result)
        examples = unique_by_id([example for part in parts for example in part.examples])
        if not examples:
            raise DataError(f"Split {split_name!r} has no examples to evaluate on")
        skipped = self._count_missing(examples, split_name)
        # On one rank: metrics may start programs of their own (Java), and the files are written once.
        scores = None
        if ranks.rank() == 0:
            metrics_of = self.metrics_of if self.generates else lambda config: ()
            report = score_split(examples, metrics_of, self.category_of)
            scores = report.as_dict()
            if self.valid_loss:
                weight = sum(part.loss_weight for part in parts)
                scores[LOSS] = sum(part.loss_sum for part in parts) / weight if weight else math.nan
                for name in dict.fromkeys(name for part in parts for name in part.logged):
                    scores[name] = sum(part.logged.get(name, 0.0) for part in parts) / weight
            if skipped:
                scores["num_skipped"] = skipped
            self._write(examples, report, scores, split_name, epoch, title_of(split_name, epoch, skip_reload))
            scores["agg_metrics"] = self._aggregate(scores, report)
        return ranks.broadcast_object(scores)

    def _count_missing(self, examples: list[dict[str, Any]], split_name: str) -> int:
        """Count the examples of a split that were not evaluated, and tell of them."""
        # Data leaves out what cannot be read, and a sampler of somebody's own may leave out anything.
        if not offers(self._dataset, CountedData) or ranks.rank() != 0:
            return 0
        expected = self._dataset.num_examples
        if len(examples) != expected:
            logging.warning("Split %s has %d examples, but %d were evaluated.", split_name, expected, len(examples))
        return max(0, expected - len(examples))

    def _aggregate(self, scores: Mapping[str, float], report: SplitScores) -> float:
        if self.agg_metric not in scores:
            for name, reason in report.skipped.items():
                # Not an error, which would end a training behind its first epoch.
                if self.agg_metric in (name, name.rpartition("/")[2]):
                    logging.warning("run.agg_metric is %s, which was not computed: %s.", self.agg_metric, reason)
                    return math.nan
            names = ", ".join(name for name in scores if name != "num_examples")
            raise ConfigError(f"run.agg_metric is {self.agg_metric!r}, but computed are: {names}")
        # LAVIS chooses the highest.
        return -scores[LOSS] if self.agg_metric == LOSS else scores[self.agg_metric]

    def _write(
        self,
        examples: list[dict[str, Any]],
        report: SplitScores,
        scores: Mapping[str, float],
        split_name: str,
        epoch: int | str,
        title: str,
    ) -> None:
        output = Path(str(registry.get_path("output_dir")))
        predictions = Path(str(registry.get_path("result_dir"))) / f"{split_name}_epoch{epoch}.jsonl"
        with atomic_path(predictions) as partial, open(partial, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(example, ensure_ascii=False) + "\n" for example in examples)
        metrics = {"split": split_name, "epoch": epoch, **scores, **report.notes()}
        if self.agg_metric in scores:
            metrics["agg_metrics"] = self._aggregate(scores, report)
        write_atomically(output / f"{split_name}_metrics.json", json.dumps(metrics, indent=2) + "\n")
        page = describe(report, title, scores.get(LOSS), int(scores.get("num_skipped", 0)))
        write_atomically(output / f"{split_name}_results.md", page)
        if self.generates and self.pictures:
            shown = choose_examples(self._dataset, examples, self.pictures)
            if shown:
                write_picture_page(output / f"{split_name}_pictures.html", title, shown)
        if isinstance(epoch, int):
            # Of each epoch of a training a line; its page lies in the folder.
            logging.info("%s: %s", title, one_line(report, scores.get(LOSS)))
            for remark in sorted(set(remarks_on(report)) - self._told):
                self._told.add(remark)
                logging.info("%s", remark)
        else:
            logging.info("%s\nPredictions: %s", page, predictions)

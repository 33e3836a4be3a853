"""Task `m3it`: instruction tuning with validation loss, generated answers and their scores."""

import contextlib
import json
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lavis.common.registry import registry
from lavis.tasks.base_task import BaseTask

from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.metrics import METRICS
from gitllm_plugin.runners import collectives
from gitllm_plugin.runners.loaders import move_to_device, num_batches, num_samples
from gitllm_plugin.runners.progress import Progress
from gitllm_plugin.tasks.report import average_scores, format_table, unique_by_id

LOSS = "loss"


@dataclass
class EvaluationResult:
    """What one rank found on its part of a split.

    Attributes:
        examples: One dict per example.
        loss_sum: Sum of the loss over supervised tokens.
        num_tokens: Number of supervised tokens.
    """

    examples: list[dict[str, Any]] = field(default_factory=list)
    loss_sum: float = 0.0
    num_tokens: int = 0


@registry.register_task("m3it")
class M3ITTask(BaseTask):
    """Trains on answers, and evaluates by loss and by scoring generated answers.

    Args:
        metrics: Names in `gitllm_plugin.metrics.METRICS`; none for no generation.
        agg_metric: The one that chooses the best epoch, or `loss` (lowest is best).
        valid_loss: Whether the loss is computed in evaluation.
        max_len: Most new tokens of an answer.
        min_len: Fewest.
        num_beams: Beams of the search.
        log_freq: Batches between two progress lines where there is no terminal.
    """

    CONFIG_KEYS = frozenset({"metrics", "agg_metric", "valid_loss", "max_len", "min_len", "num_beams"})

    def __init__(
        self,
        metrics: tuple[str, ...] = ("exact_match", "rouge_l"),
        agg_metric: str = "exact_match",
        valid_loss: bool = True,
        max_len: int = 30,
        min_len: int = 1,
        num_beams: int = 1,
        log_freq: int = 50,
    ):
        super().__init__()
        self.metrics = metrics
        self.agg_metric = agg_metric
        self.valid_loss = valid_loss
        self.max_len = max_len
        self.min_len = min_len
        self.num_beams = num_beams
        self.log_freq = log_freq

    @classmethod
    def setup_task(cls, cfg: Any) -> "M3ITTask":
        """Build the task from `cfg.run_cfg`.

        Raises:
            ConfigError: Unknown metric, or `agg_metric` that is not computed.
        """
        run_cfg = cfg.run_cfg
        metrics = tuple(run_cfg.get("metrics", ("exact_match", "rouge_l")))
        valid_loss = bool(run_cfg.get("valid_loss", True))
        agg_metric = run_cfg.get("agg_metric", metrics[0] if metrics else LOSS)
        unknown = [name for name in metrics if name not in METRICS]
        if unknown:
            raise ConfigError(f"run.metrics has {', '.join(unknown)}; there are {', '.join(METRICS)}")
        computed = [*metrics, *([LOSS] if valid_loss else [])]
        if agg_metric not in computed:
            names = ", ".join(computed) or "none"
            raise ConfigError(f"run.agg_metric is {agg_metric!r}, but computed are: {names}")
        return cls(
            metrics=metrics,
            agg_metric=agg_metric,
            valid_loss=valid_loss,
            max_len=int(run_cfg.get("max_len", 30)),
            min_len=int(run_cfg.get("min_len", 1)),
            num_beams=int(run_cfg.get("num_beams", 1)),
            log_freq=int(run_cfg.get("log_freq", 50)),
        )

    def train_outputs(self, model: Any, samples: dict[str, Any]) -> dict[str, Any]:
        """Forward pass of one batch: `loss`, a scalar, the mean over `num_supervised_tokens`."""
        return model(samples)

    @torch.no_grad()
    def valid_step(self, model: Any, samples: dict[str, Any]) -> list[dict[str, Any]]:
        """Answer a batch.

        Returns:
            Per example `instance_id`, `config`, `question`, `prompt`, `prediction` (None without metrics) and
            `references`.
        """
        count = num_samples(samples)
        predictions: list[str | None] = [None] * count
        if self.metrics:
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
        """Loss and answers for this rank's part of a split.

        Repairs the host's: it always moves batches to a GPU and prints every tenth.

        Args:
            model: In evaluation mode, not wrapped.
            data_loader: Gives samples of the `m3it` data set.
            cuda_enabled: Not used: batches go where the model is.
        """
        result = EvaluationResult()
        inference = getattr(model, "inference", contextlib.nullcontext)
        with inference(), Progress("evaluation", num_batches(data_loader), log_freq=self.log_freq) as progress:
            for samples in data_loader:
                samples = move_to_device(samples, model.device)
                if self.valid_loss:
                    outputs = model(samples)
                    tokens = int(outputs["num_supervised_tokens"])
                    result.loss_sum += float(outputs["loss"]) * tokens
                    result.num_tokens += tokens
                result.examples += self.valid_step(model, samples)
                progress.update(samples=num_samples(samples))
        return result

    def after_evaluation(
        self, val_result: EvaluationResult, split_name: str, epoch: int | str, **kwargs: Any
    ) -> dict[str, Any]:
        """Gather all ranks' results, score each example once, and write predictions and metrics.

        Writes `result/{split}_epoch{epoch}.jsonl` and `{split}_metrics.json` into the run's folder.

        Returns:
            On every rank: `loss`, each metric over all examples and as `{config}/{metric}`, `num_examples`,
            and `agg_metrics`, of which higher is better.

        Raises:
            DataError: The split is empty.
        """
        parts = collectives.gather_objects(val_result)
        examples = unique_by_id([example for part in parts for example in part.examples])
        if not examples:
            raise DataError(f"Split {split_name!r} has no examples to evaluate on")
        scores = None
        if collectives.rank() == 0:
            self._score(examples)
            scores = average_scores(examples, self.metrics)
            if self.valid_loss:
                tokens = sum(part.num_tokens for part in parts)
                scores[LOSS] = sum(part.loss_sum for part in parts) / tokens if tokens else math.nan
            scores["agg_metrics"] = -scores[LOSS] if self.agg_metric == LOSS else scores[self.agg_metric]
            self._write(examples, scores, split_name, epoch)
        return collectives.broadcast_object(scores)

    def _score(self, examples: list[dict[str, Any]]) -> None:
        """Add each metric's score to each example."""
        predictions = [example["prediction"] for example in examples]
        references = [example["references"] for example in examples]
        for name in self.metrics:
            for example, score in zip(examples, METRICS[name](predictions, references), strict=True):
                example[name] = score

    def _write(self, examples: list[dict[str, Any]], scores: dict[str, Any], split_name: str, epoch: int | str) -> None:
        predictions = Path(str(registry.get_path("result_dir"))) / f"{split_name}_epoch{epoch}.jsonl"
        with open(predictions, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(example, ensure_ascii=False) + "\n" for example in examples)
        metrics = Path(str(registry.get_path("output_dir"))) / f"{split_name}_metrics.json"
        metrics.write_text(json.dumps({"split": split_name, "epoch": epoch, **scores}, indent=2) + "\n")
        table = format_table(examples, self.metrics)
        loss = f", loss {scores[LOSS]:.4f}" if LOSS in scores else ""
        logging.info("%s, epoch %s%s\n%s", split_name, epoch, loss, table)
        logging.info("Predictions: %s", predictions)

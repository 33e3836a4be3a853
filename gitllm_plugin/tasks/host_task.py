"""What the tasks of LAVIS lack in common, repaired once."""

import contextlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from lavis.common.registry import registry
from lavis.tasks.base_task import BaseTask

from gitllm_plugin.common import ranks
from gitllm_plugin.common.files import storage_errors, write_atomically
from gitllm_plugin.common.loading import move_batch, num_samples
from gitllm_plugin.common.progress import Progress
from gitllm_plugin.config import read
from gitllm_plugin.protocols import MergingModel, offers
from gitllm_plugin.tasks.settings import NoTaskSettings


def replaces(name: str) -> Callable[[type], type]:
    """Let configurations that name LAVIS's task ``name`` get the decorated class, a subclass of it."""

    def replace(cls: type) -> type:
        # Not registry.register_task, which refuses a name that is taken.
        registry.mapping["task_name_mapping"][name] = cls
        return cls

    return replace


def inference(model: Any) -> contextlib.AbstractContextManager[None]:
    """Give the context that an evaluation of a model runs in; see :class:`~gitllm_plugin.protocols.MergingModel`."""
    return model.inference() if offers(model, MergingModel) else contextlib.nullcontext()


class CountedTraining:
    """Mixed into a task of LAVIS: a :class:`~gitllm_plugin.protocols.CountingTask`."""

    def train_outputs(self, model: Any, samples: dict[str, Any]) -> Mapping[str, Any]:
        """Compute the loss of a batch, and how much the batch weighs beside others.

        Repairs: the loss alone is handed on, so that accumulated batches and ranks of few tokens weigh as much as those
        of many. Models that count nothing, as LAVIS's own, train as before.
        """
        outputs = model(samples)
        counts = {name: outputs[name] for name in ("num_supervised_tokens", "supervised_weight") if name in outputs}
        return {"loss": outputs["loss"], "num_supervised_tokens": 1, **counts}


class RepairedTask(CountedTraining):
    """Mixed into a task of LAVIS; every method says which defect it repairs."""

    Settings: ClassVar[type] = NoTaskSettings

    @classmethod
    def setup_task(cls: Any, cfg: Any) -> Any:
        """Build the task from ``cfg.run_cfg``.

        Repairs: keys have no defaults, and values are taken as they are written, a number as text among them.

        Raises:
            ConfigError: naming everything that is wrong of what the task reads.
        """
        settings = read(cls.Settings, "run", cfg.run_cfg, closed=False)
        for key in settings.__dataclass_fields__:
            value = getattr(settings, key)
            if value is not None:
                cfg.run_cfg[key] = list(value) if isinstance(value, tuple) else value
        return super().setup_task(cfg=cfg)  # type: ignore[misc]

    def build_datasets(self: Any, cfg: Any) -> dict[str, dict[str, Any]]:
        """Build the data sets, by name and split.

        Repairs: git main's tasks refuse other than one split in ``run.valid_splits``, and read all pictures of it to
        write a file of what its annotations say.
        """
        return BaseTask.build_datasets(self, cfg)

    @torch.no_grad()
    def evaluation(self, model: Any, data_loader: Any, cuda_enabled: bool = True) -> list[Any]:
        """Answer this rank's part of a split.

        Repairs: batches always go to a GPU, and every tenth is printed.
        """
        results: list[Any] = []
        with inference(model), Progress("evaluation", len(data_loader)) as progress:
            for samples in data_loader:
                samples = move_batch(samples, model, model.device)
                results += self.valid_step(model=model, samples=samples)  # type: ignore[attr-defined]
                progress.update(samples=num_samples(samples))
        return results

    @staticmethod
    def save_result(result: Sequence[Any], result_dir: str, filename: str, remove_duplicate: str = "") -> str:
        """Write the results of all ranks, those of equal id once, and give the file's path on every rank.

        Repairs: the time to find repeated ids grows with the square of their number, and files of single ranks,
        which may be another run's, are read from the disk.
        """
        path = Path(result_dir) / f"{filename}.json"
        parts = ranks.gather_objects(list(result))
        if ranks.rank() == 0:
            write_atomically(path, json.dumps(unique([row for part in parts for row in part], remove_duplicate)))
            logging.info("Results: %s", path)
        # Whoever gets the path may read it.
        ranks.barrier()
        return str(path)


def unique(rows: Sequence[Mapping[str, Any]], key: str) -> list[Mapping[str, Any]]:
    """Keep the first of all rows with an equal value under ``key``, and say how many are left out.

    Args:
        rows: of all ranks, in their order.
        key: empty to keep all rows.
    """
    if not key:
        return list(rows)
    first: dict[Any, Mapping[str, Any]] = {}
    for row in rows:
        first.setdefault(row[key], row)
    if len(first) < len(rows):
        logging.warning(
            "%d results with an %s that another one has were left out", len(rows) - len(first), key.replace("_", " ")
        )
    return list(first.values())


def note_scores(scores: Mapping[str, Any]) -> None:
    """Add a line to LAVIS's file of evaluations."""
    path = Path(str(registry.get_path("output_dir"))) / "evaluate.txt"
    with storage_errors(str(path)), open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(scores) + "\n")

"""Trains under LAVIS's runners with a task whose scores are given: ``python scored_task.py JSON``.

The argument has `config`, `options` and `scores`, one a validation, of which the last stands for all others too; null
stands for none.
"""

import json
import sys

import gitllm_plugin

gitllm_plugin.register()

from lavis.common.registry import registry  # noqa: E402

from gitllm_plugin.host import launch  # noqa: E402
from gitllm_plugin.tasks.m3it import M3ITTask  # noqa: E402


class ScoredTask(M3ITTask):
    """M3IT's, with other scores of the validation."""

    scores: list[float | None] = []

    def after_evaluation(self, val_result, split_name, epoch, **kwargs):
        found = super().after_evaluation(val_result, split_name, epoch, **kwargs)
        if split_name == "val" and self.scores:
            score = self.scores.pop(0) if len(self.scores) > 1 else self.scores[0]
            found["agg_metrics"] = score
            if score is None:
                del found["agg_metrics"]
        return found


def forget_folders() -> None:
    """LAVIS registers a run's folders once a process."""
    for name in ("output_dir", "result_dir"):
        registry.mapping["paths"].pop(name, None)


def train(config: str, options: list[str], scores: list[float | None]):
    """Train; gives the runner."""
    forget_folders()
    registry.mapping["task_name_mapping"]["scored"] = ScoredTask
    ScoredTask.scores = list(scores)
    return launch.train(config, options)


if __name__ == "__main__":
    train(**json.loads(sys.argv[1]))

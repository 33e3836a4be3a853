"""LAVIS's task ``dialogue``: how well the answers of a dialogue are predicted."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lavis.tasks.dialogue import DialogueTask

from gitllm_plugin.common import ranks
from gitllm_plugin.protocols import weight_of_loss
from gitllm_plugin.tasks.host_task import RepairedTask, note_scores, replaces
from gitllm_plugin.tasks.settings import DialogueSettings


@replaces("dialogue")
class AnswersOfDialogueTask(RepairedTask, DialogueTask):
    """The loss on answers, as LAVIS's task computes it."""

    Settings = DialogueSettings

    def valid_step(self, model: Any, samples: Mapping[str, Any]) -> list[tuple[float, float]]:
        """Compute a batch's loss and weight. Repairs: batches of few tokens weigh as much as those of many."""
        outputs = model(samples)
        return [(float(outputs["loss"]), weight_of_loss(outputs))]

    def after_evaluation(
        self, val_result: Sequence[tuple[float, float]], split_name: str, epoch: Any, **kwargs: Any
    ) -> dict[str, float]:
        """Average over all tokens of all ranks.

        Repairs: each rank reports its own part, and the epoch of the highest loss is the best.
        """
        pairs = [pair for part in ranks.gather_objects(list(val_result)) for pair in part]
        weight = sum(weight for _, weight in pairs)
        loss = sum(loss * weight for loss, weight in pairs) / weight if weight else math.nan
        # LAVIS chooses the highest.
        metrics = {"loss": loss, "agg_metrics": -loss}
        if ranks.rank() == 0:
            note_scores({split_name: metrics})
        return metrics

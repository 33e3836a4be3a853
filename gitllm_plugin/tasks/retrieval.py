"""LAVIS's task ``retrieval``: which caption belongs to a picture, and which picture to a caption."""

from typing import Any

from lavis.tasks.retrieval import RetrievalTask

from gitllm_plugin.common import ranks
from gitllm_plugin.tasks.host_task import RepairedTask, inference, replaces
from gitllm_plugin.tasks.settings import RetrievalSettings


@replaces("retrieval")
class CaptionRetrievalTask(RepairedTask, RetrievalTask):
    """Recall of captions and of pictures; a model gives its scores by ``compute_sim_matrix``."""

    Settings = RetrievalSettings

    def evaluation(self, model: Any, data_loader: Any, cuda_enabled: bool = True) -> dict[str, Any]:
        """Rank a split.

        Repairs: ranks but the first have no result.
        """
        with inference(model):
            scores = model.compute_sim_matrix(data_loader, task_cfg=self.cfg)
        dataset = data_loader.dataset
        return ranks.from_first_rank(lambda: self._report_metrics(*scores, dataset.txt2img, dataset.img2txt))

"""LAVIS's task ``multimodal_classification`` (ImageNet, SNLI-VE, NLVR2)."""

from lavis.tasks.multimodal_classification import MultimodalClassificationTask

from gitllm_plugin.tasks.host_task import RepairedTask, replaces


@replaces("multimodal_classification")
class ClassificationTask(RepairedTask, MultimodalClassificationTask):
    """Images, or images with a text, and a class; the most likely class name is the answer."""

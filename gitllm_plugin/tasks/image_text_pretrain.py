"""LAVIS's task ``image_text_pretrain``: training on images with texts, without evaluation."""

from lavis.tasks.image_text_pretrain import ImageTextPretrainTask

from gitllm_plugin.tasks.host_task import CountedTraining, replaces
from gitllm_plugin.tasks.settings import NoTaskSettings


@replaces("image_text_pretrain")
class PretrainingTask(CountedTraining, ImageTextPretrainTask):
    """LAVIS's own, whose tokens are counted; it reads no key of ``run``, so that a wrong one is found."""

    Settings = NoTaskSettings

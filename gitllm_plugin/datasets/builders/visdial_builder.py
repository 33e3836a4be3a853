"""The builder of VisDial for LAVIS."""

from lavis.common.registry import registry
from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder

from gitllm_plugin.datasets.datasets.visdial_dataset import VisDialDataset
from gitllm_plugin.datasets.settings import VisDialSettings
from gitllm_plugin.resources import config_path


@registry.register_builder("git_llm_visdial")
class VisDialBuilder(BaseDatasetBuilder):
    """Builds the splits that the configuration names; nothing is downloaded."""

    train_dataset_cls = eval_dataset_cls = VisDialDataset
    DATASET_CONFIG_DICT = {"default": config_path("datasets", "git_llm_visdial", "defaults.yaml")}
    Settings = VisDialSettings

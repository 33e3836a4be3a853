"""The builder of M3IT for LAVIS, registered once for each source that M3IT is read from."""

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

from lavis.common.registry import registry
from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder, load_dataset_config
from lavis.processors.base_processor import BaseProcessor
from omegaconf import DictConfig, OmegaConf

from gitllm_plugin.config import read
from gitllm_plugin.datasets.datasets.m3it_dataset import M3ITDataset
from gitllm_plugin.datasets.datasets.m3it_shards import M3ITShards
from gitllm_plugin.datasets.items import ItemMaker
from gitllm_plugin.datasets.settings import M3ITInstructSettings, M3ITSettings, M3ITWdsSettings, TextsSettings
from gitllm_plugin.datasets.sources import FilesSource, ShardsSource, Source, TreeSource
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.resources import config_path

_MOST_CONFIGS = 5
"""Of which the log gives the size."""


class SourceBuilder(BaseDatasetBuilder):
    """Builds the splits of one source; ``configs/datasets/<name>/defaults.yaml`` shows all that can be set.

    LAVIS makes a builder from its class alone, so each name has a class; they differ by their source.

    Args:
        cfg: the node of the data set in a configuration, a path of a YAML file that has it, or None for the defaults,
            which name no data. What is not given is taken from the defaults.

    Attributes:
        source: where the data is read from.

    Raises:
        ConfigError: if a key or value is not known.
    """

    source: ClassVar[type[Source]]
    Settings: ClassVar[type[TextsSettings]]

    def __init__(self, cfg: DictConfig | str | None = None):
        # LAVIS merges defaults for itself where it builds data sets for a run, but not for `load_dataset`.
        given = load_dataset_config(cfg) if isinstance(cfg, str) else cfg
        if OmegaConf.is_config(given):  # resolved here: a merged node no longer knows the file that it stood in
            given = OmegaConf.create(OmegaConf.to_container(given, resolve=True))
        super().__init__(OmegaConf.merge(load_dataset_config(self.default_config_path()), given or {}))
        self.settings = read(self.Settings, self.source.where, self.config)

    def build_datasets(self) -> dict[str, M3ITDataset | M3ITShards]:
        """Find the data and open its splits; nothing is downloaded.

        Raises:
            ConfigError: if no data is named, or what is chosen of it does not exist.
            DataError: if files are missing, empty or hold what cannot be used.
        """
        source = self.source(self.settings)
        self.build_processors()
        datasets = {split: source.open(split, self.make_items(split)) for split in source.splits}
        for split, dataset in datasets.items():
            logging.info("M3IT %s%s: %s", split, source.place, _counted(dataset.describe()))
        return datasets

    def make_items(self, split: str) -> ItemMaker:
        """Make what makes a split's items, once there are processors."""
        phase = "train" if split == "train" else "eval"
        return ItemMaker(self.vis_processors[phase], self.text_processors[phase])

    @classmethod
    def _build_proc_from_cfg(cls, cfg: DictConfig | None) -> BaseProcessor:
        # LAVIS's own answers an unknown name with a traceback about None.
        name = cfg.get("name") if cfg else None
        processor_class = registry.get_processor_class(name)
        if processor_class is None:
            known = ", ".join(sorted(registry.list_processors()))
            raise ConfigError(f"{cls.source.where}: processor {name!r} is unknown; the processors are: {known}")
        return processor_class.from_config(cfg)


def _counted(described: Mapping[str, Any]) -> str:
    """Write how much there is of a split, and of its largest configurations."""
    counts = [f"{count:,} {what}" for what, count in described.items() if isinstance(count, int)]
    configs = sorted(described["configs"].items(), key=lambda each: -each[1])
    shown = [f"{name} {count:,}" for name, count in configs[:_MOST_CONFIGS]]
    more = [f"{len(configs) - _MOST_CONFIGS} more"] if len(configs) > _MOST_CONFIGS else []
    return f"{', '.join(counts)}; {', '.join(shown + more)}"


@registry.register_builder("m3it")
class M3ITBuilder(SourceBuilder):
    """M3IT from files that the configuration names."""

    source = FilesSource
    train_dataset_cls = eval_dataset_cls = M3ITDataset
    DATASET_CONFIG_DICT = {"default": config_path("datasets", "m3it", "defaults.yaml")}
    Settings = M3ITSettings


@registry.register_builder("m3it_instruct")
class M3ITInstructBuilder(SourceBuilder):
    """M3IT from the tree as it is downloaded, any mixture of it."""

    source = TreeSource
    train_dataset_cls = eval_dataset_cls = M3ITDataset
    DATASET_CONFIG_DICT = {"default": config_path("datasets", "m3it_instruct", "defaults.yaml")}
    Settings = M3ITInstructSettings


@registry.register_builder("m3it_wds")
class M3ITWdsBuilder(SourceBuilder):
    """M3IT from a folder of shards, as streams."""

    source = ShardsSource
    train_dataset_cls = eval_dataset_cls = M3ITShards
    DATASET_CONFIG_DICT = {"default": config_path("datasets", "m3it_wds", "defaults.yaml")}
    Settings = M3ITWdsSettings

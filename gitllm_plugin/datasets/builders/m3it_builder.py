"""The builder of M3IT for LAVIS: reads the configuration of a data set and opens its files."""

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

from lavis.common.registry import registry
from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder, load_dataset_config
from lavis.processors.base_processor import BaseProcessor
from omegaconf import DictConfig, ListConfig, OmegaConf

from gitllm_plugin.config_keys import DATASET_KEYS, check_keys, type_faults
from gitllm_plugin.datasets.datasets.m3it_dataset import M3ITDataset
from gitllm_plugin.datasets.settings import M3ITSettings
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.m3it.examples import IndexedExamples
from gitllm_plugin.m3it.files import find_sources
from gitllm_plugin.m3it.grouping import ALL_TEXTS
from gitllm_plugin.m3it.jsonl import JsonlExamples
from gitllm_plugin.resources import config_path

SPLIT_NAME = re.compile(r"train|(val|test)(_\w+)?")

_TEXTS_KEYS = ("texts_per_image", "eval_texts_per_image")
_NO_FILES = """The data set m3it names no files.
Set datasets.m3it.build_info.annotations.<split>.storage (<split> is train, val or test) to a JSONL file,
a list of files or a mapping from configuration names to those, for example
  build_info: {annotations: {train: {storage: {coco: data/coco/train.jsonl}}}}"""


@registry.register_builder("m3it")
class M3ITBuilder(BaseDatasetBuilder):
    """Builds the splits that the configuration names.

    ``configs/datasets/m3it/defaults.yaml`` shows all that can be set.

    Args:
        cfg: the node ``datasets.m3it`` of a configuration, a path of a YAML file that has it, or None for the
            defaults, which name no files. What is not given is taken from the defaults.

    Raises:
        ConfigError: if a key or value is not known.
    """

    train_dataset_cls = eval_dataset_cls = M3ITDataset
    DATASET_CONFIG_DICT = {"default": config_path("datasets", "m3it", "defaults.yaml")}
    Settings = M3ITSettings
    CONFIG_KEYS = frozenset({"texts_per_image", "eval_texts_per_image", "allow_text_only"})
    where = "datasets.m3it"

    def __init__(self, cfg: DictConfig | str | None = None):
        given = load_dataset_config(cfg) if isinstance(cfg, str) else cfg
        super().__init__(OmegaConf.merge(load_dataset_config(self.default_config_path()), given or {}))
        check_keys(self.where, self.config, self.CONFIG_KEYS | DATASET_KEYS)
        for key in _TEXTS_KEYS:
            if self.config[key] == "all":
                self.config[key] = ALL_TEXTS
            if not isinstance(self.config[key], int) or self.config[key] < 1:
                raise ConfigError(f"{self.where}.{key} is {self.config[key]!r}, expected 1 or more, or all")

    @classmethod
    def config_faults(cls, cfg: Mapping[str, Any]) -> Iterable[str]:
        """What is wrong with the values of the node, files that are not there among it, before anything is built."""
        yield from type_faults(cls.where, cfg, {key: int for key in _TEXTS_KEYS if cfg.get(key) != "all"})
        yield from type_faults(cls.where, cfg, {"allow_text_only": bool})
        for split, node in _annotations(cfg).items() if cls is M3ITBuilder else ():  # others read other files
            if isinstance(node, Mapping) and _is_storage(node.get("storage")):
                try:
                    find_sources(node["storage"])
                except DataError as error:
                    yield f"{cls.where}.build_info.annotations.{split}.storage: {error}"

    @classmethod
    def config_splits(cls, cfg: Mapping[str, Any]) -> set[str]:
        """The splits that the node names files for."""
        return {split for split, node in _annotations(cfg).items() if node is not None}

    def build_datasets(self) -> dict[str, M3ITDataset]:
        """Opens and checks the files of every split; nothing is downloaded.

        Raises:
            ConfigError: if no split names files, or a split is configured wrongly.
            DataError: if files are missing, empty or hold bad rows.
        """
        splits = self._read_splits()
        self.build_processors()
        datasets = {split: self._build_split(split, node) for split, node in splits.items()}
        for split, dataset in datasets.items():
            logging.info("M3IT %s: %s", split, dataset.describe())
        return datasets

    @classmethod
    def _build_proc_from_cfg(cls, cfg: DictConfig | None) -> BaseProcessor:
        name = cfg.get("name") if cfg else None
        processor_class = registry.get_processor_class(name)
        if processor_class is None:
            known = ", ".join(sorted(registry.list_processors()))
            raise ConfigError(f"{cls.where}: processor {name!r} is unknown; the processors are: {known}")
        return processor_class.from_config(cfg)

    def _names(self, key: str) -> list[str]:
        """A list of names of ``build_info``; empty if it is not given."""
        value = self.config.build_info.get(key)
        if value is None:
            return []
        names = OmegaConf.to_container(value) if isinstance(value, ListConfig) else [value]
        if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
            raise ConfigError(f"{self.where}.build_info.{key} is {value!r}, expected a name or a list of names")
        return [str(name) for name in names]

    def _read_splits(self) -> dict[str, dict[str, Any]]:
        """The nodes of the splits that are used, as plain mappings."""
        check_keys("datasets.m3it.build_info", self.config.build_info or {}, {"annotations"})
        annotations = (self.config.build_info or {}).get("annotations") or {}
        wrong = [name for name in annotations if not SPLIT_NAME.fullmatch(name)]
        if wrong:
            raise ConfigError(
                f"datasets.m3it.build_info.annotations has the split {wrong[0]!r}; splits are train, val, test, and "
                "further sets to evaluate on named val_... and test_..."
            )
        splits = {name: _read_split(name, node) for name, node in annotations.items() if node is not None}
        if not splits:
            raise ConfigError(_NO_FILES)
        return splits

    def _build_split(self, split: str, node: Mapping[str, Any]) -> M3ITDataset:
        examples = JsonlExamples(
            find_sources(node["storage"]),
            allow_text_only=self.config.allow_text_only,
            limit=node.get("limit"),
        )
        return self._make_dataset(split, examples)

    def _make_dataset(self, split: str, examples: IndexedExamples) -> M3ITDataset:
        is_train = split == "train"
        phase = "train" if is_train else "eval"
        return M3ITDataset(
            vis_processor=self.vis_processors[phase],
            text_processor=self.text_processors[phase],
            examples=examples,
            texts_per_image=self.config["texts_per_image" if is_train else "eval_texts_per_image"],
            separate_configs=not is_train,
        )


def _annotations(cfg: Mapping[str, Any]) -> Mapping[str, Any]:
    return (cfg.get("build_info") or {}).get("annotations") or {}


def _read_split(name: str, node: Any) -> dict[str, Any]:
    where = f"datasets.m3it.build_info.annotations.{name}"
    if not isinstance(node, DictConfig):
        raise ConfigError(f"{where} is {node!r}, expected a mapping with the key storage")
    check_keys(where, node, {"storage", "limit"})
    limit, storage = node.get("limit"), node.get("storage")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise ConfigError(f"{where}.limit is {limit!r}, expected 1 or more rows of each file")
    if isinstance(storage, (DictConfig, ListConfig)):
        storage = OmegaConf.to_container(storage, resolve=True)
    if not _is_storage(storage):
        raise ConfigError(
            f"{where}.storage is {storage!r}, expected a path, a list of paths, "
            "or a mapping from configuration names to those"
        )
    return {"storage": storage, "limit": limit}


def _is_storage(storage: Any) -> bool:
    values = list(storage.values()) if isinstance(storage, dict) else [storage]
    paths = [path for value in values for path in (value if isinstance(value, list) else [value])]
    return bool(paths) and all(isinstance(path, str) and path for path in paths)

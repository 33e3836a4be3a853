"""The builder of M3IT from shards for LAVIS."""

import fnmatch
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lavis.common.registry import registry
from omegaconf import DictConfig

from gitllm_plugin.config_keys import check_keys
from gitllm_plugin.datasets.builders.m3it_builder import M3ITBuilder
from gitllm_plugin.datasets.datasets.m3it_shards import M3ITShards
from gitllm_plugin.datasets.features import describe_processor
from gitllm_plugin.datasets.items import ItemMaker
from gitllm_plugin.datasets.settings import M3ITWdsSettings
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.m3it.catalog import SPLITS
from gitllm_plugin.m3it.presets import get_preset
from gitllm_plugin.m3it.shards.features import FeatureReader
from gitllm_plugin.m3it.shards.folder import ShardFolder
from gitllm_plugin.m3it.shards.format import Manifest
from gitllm_plugin.m3it.shards.mixture import EpochOrder, choose_quotas
from gitllm_plugin.m3it.shards.table import ItemTable
from gitllm_plugin.resources import config_path

_NO_SHARDS = """The data set m3it_wds names no shards.
Set datasets.m3it_wds.build_info.shards to the folder or URL that has their manifest.json, for example
  build_info: {shards: data/shards}"""


def features_folder(build_info: Mapping[str, Any]) -> Path:
    """Where the features are that ``build_info.features`` names: a folder; ``true``, or nothing, the shards' own.

    Raises:
        ConfigError: the shards are not in a folder, so features need one.
    """
    given = build_info.get("features")
    place = str(given if isinstance(given, str) else build_info["shards"])
    if "://" in place:
        raise ConfigError(
            f"datasets.m3it_wds.build_info.features: features are read from a folder of this machine, "
            f"not from {place}; name one"
        )
    return Path(place).expanduser()


@registry.register_builder("m3it_wds")
class M3ITWdsBuilder(M3ITBuilder):
    """Builds the splits of a folder of shards.

    ``configs/datasets/m3it_wds/defaults.yaml`` shows all that can be set.

    Args:
        cfg: the node ``datasets.m3it_wds`` of a configuration, a path of a YAML file that has it, or None for the
            defaults, which name no shards. What is not given is taken from the defaults.

    Raises:
        ConfigError: if a key or value is not known.
    """

    train_dataset_cls = eval_dataset_cls = M3ITShards
    DATASET_CONFIG_DICT = {"default": config_path("datasets", "m3it_wds", "defaults.yaml")}
    Settings = M3ITWdsSettings
    CONFIG_KEYS = frozenset(
        {
            "texts_per_image",
            "eval_texts_per_image",
            "weights",
            "temperature",
            "items_per_epoch",
            "seed",
            "shuffle_shards",
            "on_error",
            "cache_dir",
        }
    )
    where = "datasets.m3it_wds"

    def __init__(self, cfg: DictConfig | str | None = None):
        super().__init__(cfg)
        if self.config.on_error not in ("stop", "skip"):
            raise ConfigError(f"{self.where}.on_error is {self.config.on_error!r}, expected stop or skip")
        for key, least in (("shuffle_shards", 1), ("seed", 0)):
            if not isinstance(self.config[key], int) or self.config[key] < least:
                raise ConfigError(f"{self.where}.{key} is {self.config[key]!r}, expected {least} or more")

    def build_datasets(self) -> dict[str, M3ITShards]:
        """Reads the manifest; of shards on a disk the sizes are compared with it.

        Raises:
            ConfigError: if no shards are named, or what is chosen of them does not exist.
            DataError: if the manifest cannot be read, or, with ``on_error: stop``, shards are missing or too short.
        """
        info = self.config.build_info or {}
        check_keys(f"{self.where}.build_info", info, {"shards", "preset", "configs", "splits", "features"})
        if not info.get("shards"):
            raise ConfigError(_NO_SHARDS)
        folder = ShardFolder(str(info.shards), self.config.cache_dir)
        manifest = folder.read_manifest()
        configs = self._choose_configs(manifest)
        splits = self._choose_splits(manifest, configs)
        self.build_processors()
        datasets = {split: self._build_stream(split, folder, manifest, configs) for split in splits}
        for split, dataset in datasets.items():
            logging.info("M3IT %s from %s: %s", split, folder.location, dataset.describe())
        return datasets

    def _choose_configs(self, manifest: Manifest) -> list[str]:
        """The configurations that a preset, or names and wildcards, choose; all where nothing is chosen."""
        info, known = self.config.build_info, list(manifest.configs)
        patterns = self._names("configs") or ["*"]
        if info.get("preset") is not None:
            if info.get("configs") is not None:
                raise ConfigError(f"{self.where}.build_info has a preset and configs; give one of them")
            patterns = [entry.name for entry in get_preset(str(info.preset))]
        unmatched = [pattern for pattern in patterns if not fnmatch.filter(known, pattern)]
        if unmatched:
            raise ConfigError(
                f"{self.where}.build_info: there are no shards of {', '.join(unmatched)}, but of {', '.join(known)}; "
                "make them, or choose among these by configs"
            )
        return [name for name in known if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]

    def _choose_splits(self, manifest: Manifest, configs: Sequence[str]) -> list[str]:
        """The splits that are asked for, or else those that the configurations have."""
        there = [
            split
            for split in SPLITS
            if any(split in manifest.configs[name] and manifest.configs[name][split].groups for name in configs)
        ]
        splits = self._names("splits") or there
        missing = [split for split in splits if split not in there]
        if missing or not splits:
            raise ConfigError(
                f"{self.where}.build_info.splits: there are no records of {', '.join(missing) or 'any split'}; "
                f"{', '.join(configs)} have {', '.join(there) or 'none'}"
            )
        return splits

    def _build_stream(self, split: str, folder: ShardFolder, manifest: Manifest, configs: Sequence[str]) -> M3ITShards:
        is_train = split == "train"
        phase = "train" if is_train else "eval"
        table = ItemTable(
            manifest, configs, split, self.config["texts_per_image" if is_train else "eval_texts_per_image"]
        )
        self._check_files(folder, table)
        features = None
        if self.config.build_info.get("features"):
            processor = describe_processor(self.vis_processors[phase])
            features = FeatureReader(features_folder(self.config.build_info), table.shards, processor)
        return M3ITShards(
            ItemMaker(self.vis_processors[phase], self.text_processors[phase]),
            table,
            folder,
            self._order(table) if is_train else None,
            on_error=self.config.on_error,
            features=features,
        )

    def _order(self, table: ItemTable) -> EpochOrder:
        weights = self.config.weights
        try:
            quotas = choose_quotas(
                {name: len(table.config_items(name)) for name in table.config_shards},
                weights=None if weights is None else dict(weights),
                temperature=float(self.config.temperature),
                items_per_epoch=self.config.items_per_epoch,
            )
        except ConfigError as error:
            raise ConfigError(f"{self.where}: {error}") from error
        return EpochOrder(table, quotas, self.config.seed, self.config.shuffle_shards)

    def _check_files(self, folder: ShardFolder, table: ItemTable) -> None:
        problems = folder.find_missing(table.shards)
        if not problems:
            return
        message = f"{len(problems)} of {len(table.shards)} shards of {table.split} are damaged:\n  " + "\n  ".join(
            problems[:10]
        )
        if self.config.on_error == "stop":
            raise DataError(f"{message}\nCopy them again, or set {self.where}.on_error: skip to go without them.")
        logging.warning("%s", message)

"""Where M3IT is read from: files that a configuration names, the tree as it is downloaded, or shards.

A source is made of the node of its data set. It finds what there is when it is made, before processors are built, and
opens one split at a time. Files and tree give map-style data sets, shards give streams; items and batches are the same.
"""

import fnmatch
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from omegaconf import DictConfig, ListConfig, OmegaConf

from gitllm_plugin.config_keys import check_keys
from gitllm_plugin.datasets.datasets.m3it_dataset import M3ITDataset
from gitllm_plugin.datasets.datasets.m3it_shards import M3ITShards
from gitllm_plugin.datasets.features import describe_processor, features_folder
from gitllm_plugin.datasets.items import ItemMaker
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.m3it.catalog import PRESETS, SPLITS, get_preset
from gitllm_plugin.m3it.examples import IndexedExamples, JsonlExamples
from gitllm_plugin.m3it.problems import summarize_problems
from gitllm_plugin.m3it.scan import default_index_folder, open_split
from gitllm_plugin.m3it.shards.features import FeatureReader
from gitllm_plugin.m3it.shards.folder import ShardFolder
from gitllm_plugin.m3it.shards.mixture import EpochOrder, ItemTable, choose_quotas
from gitllm_plugin.m3it.tree import find_sources, find_tree

SPLIT_NAME = re.compile(r"train|(val|test)(_\w+)?")

_NO_FILES = """The data set m3it names no files.
Set datasets.m3it.build_info.annotations.<split>.storage (<split> is train, val or test) to a JSONL file,
a list of files or a mapping from configuration names to those, for example
  build_info: {annotations: {train: {storage: {coco: data/coco/train.jsonl}}}}"""

_NO_TREE = f"""The data set m3it_instruct needs a tree and a choice of it, for example
  build_info: {{root: ~/M3IT, preset: article_exp3}}   or   build_info: {{root: ~/M3IT, configs: [coco, vqa-v2]}}
The presets are {", ".join(PRESETS)}; `gitllm m3it list` shows what they are."""

_NO_SHARDS = """The data set m3it_wds names no shards.
Set datasets.m3it_wds.build_info.shards to the folder or URL that has their manifest.json, for example
  build_info: {shards: data/shards}"""


class Source:
    """What the three sources have in common.

    Args:
        config: the node of the data set, defaults included.

    Attributes:
        where: the node's dotted path, for messages.
        build_info_keys: what its ``build_info`` may have.
        config_keys: what its node may have besides what LAVIS reads.
        splits: the names of those that can be opened.
        place: where it reads, for logs: empty, or words that follow the split's name.

    Raises:
        ConfigError: if what is to be read is not said, or said wrongly.
        DataError: if it is not there.
    """

    where: ClassVar[str]
    build_info_keys: ClassVar[frozenset[str]]
    config_keys: ClassVar[frozenset[str]]
    splits: Sequence[str]
    place = ""

    def __init__(self, config: DictConfig):
        self.config = config
        self.info: Any = config.build_info or {}  # LAVIS allows a node without one
        check_keys(f"{self.where}.build_info", self.info, self.build_info_keys)

    def open(self, split: str, items: ItemMaker) -> M3ITDataset | M3ITShards:
        """Open a split.

        Args:
            split: one of ``splits``.
            items: what makes the items.

        Raises:
            DataError: if files are not what they should be.
        """
        raise NotImplementedError

    def texts_per_image(self, split: str) -> int:
        """Return the most texts that share an item of a split."""
        return self.config["texts_per_image" if split == "train" else "eval_texts_per_image"]

    def names(self, key: str) -> list[str]:
        """Read a list of names in ``build_info``; empty if it is not given.

        Raises:
            ConfigError: if it is something else.
        """
        value = self.info.get(key)
        if value is None:
            return []
        names = OmegaConf.to_container(value) if isinstance(value, ListConfig) else [value]
        if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
            raise ConfigError(f"{self.where}.build_info.{key} is {value!r}, expected a name or a list of names")
        return [str(name) for name in names]


class _Examples(Source):
    """A source whose examples have numbers."""

    config_keys = frozenset({"texts_per_image", "eval_texts_per_image", "allow_text_only"})

    def open(self, split: str, items: ItemMaker) -> M3ITDataset:
        """Open a split."""
        # In evaluation answers of one length come together, since generation runs as long as a batch's longest answer.
        return M3ITDataset(
            vis_processor=items.vis_processor,
            text_processor=items.text_processor,
            examples=self.read(split),
            texts_per_image=self.texts_per_image(split),
            separate_configs=split != "train",
        )

    def read(self, split: str) -> IndexedExamples:
        """Read the rows of a split once."""
        raise NotImplementedError


class FilesSource(_Examples):
    """Uniform rows in files that ``build_info.annotations`` names by split; all of them must be right."""

    where = "datasets.m3it"
    build_info_keys = frozenset({"annotations"})

    def __init__(self, config: DictConfig):
        super().__init__(config)
        annotations = self.info.get("annotations") or {}
        wrong = [name for name in annotations if not SPLIT_NAME.fullmatch(name)]
        if wrong:
            raise ConfigError(
                f"datasets.m3it.build_info.annotations has the split {wrong[0]!r}; splits are train, val, test, and "
                "further sets to evaluate on named val_... and test_..."
            )
        self._nodes = {name: _read_annotation(name, node) for name, node in annotations.items() if node is not None}
        if not self._nodes:
            raise ConfigError(_NO_FILES)
        self.splits = list(self._nodes)

    def read(self, split: str) -> IndexedExamples:
        """Find and check the files of a split."""
        node = self._nodes[split]
        return JsonlExamples(
            find_sources(node["storage"]), allow_text_only=self.config.allow_text_only, limit=node.get("limit")
        )

    @staticmethod
    def node_splits(cfg: Mapping[str, Any]) -> set[str]:
        """List the splits that a node names files for, before anything is built."""
        return {split for split, node in _annotations(cfg).items() if node is not None}

    @classmethod
    def node_faults(cls, cfg: Mapping[str, Any]) -> Iterable[str]:
        """Find files of a node that are not there, before anything is built."""
        for split, node in _annotations(cfg).items():
            if isinstance(node, Mapping) and _is_storage(node.get("storage")):
                try:
                    find_sources(node["storage"])
                except DataError as error:
                    yield f"{cls.where}.build_info.annotations.{split}.storage: {error}"


class TreeSource(_Examples):
    """Any mixture from the tree as it is downloaded. Rows that cannot be used are left out and told."""

    where = "datasets.m3it_instruct"
    build_info_keys = frozenset(
        {"root", "preset", "configs", "splits", "seed", "allow_missing", "limit", "index_folder"}
    )

    def __init__(self, config: DictConfig):
        super().__init__(config)
        info = self.info
        if not info.get("root") or (info.get("preset") is None) == (info.get("configs") is None):
            raise ConfigError(_NO_TREE)
        names = self.names("configs") or [entry.name for entry in get_preset(str(info.preset))]
        if info.limit is not None and (not isinstance(info.limit, int) or info.limit < 1):
            raise ConfigError(f"{self.where}.build_info.limit is {info.limit!r}, expected 1 or more rows of each file")
        splits = self.names("splits") or list(SPLITS)
        check_keys(f"{self.where}.build_info.splits", splits, SPLITS)
        self.tree = find_tree(
            str(info.root), names, splits, seed=int(info.seed), allow_text_only=self.config.allow_text_only
        )
        if self.tree.missing:
            self._tell_missing()
        # A preset's configurations do not all have every split; what none has is not opened.
        there = {files.split for files in self.tree.splits}
        self.splits = [split for split in SPLITS if split in there]
        self.place = f" of {self.tree.root}"

    def read(self, split: str) -> IndexedExamples:
        """Open the files of a split; those that were not read before are read once."""
        info, tree = self.info, self.tree
        folder = Path(info.index_folder).expanduser() if info.index_folder else default_index_folder()
        of_split = [files for files in tree.splits if files.split == split]
        # Of all configurations in one: texts about one image share an item whichever of them they belong to.
        examples = IndexedExamples(file for files in of_split for file in open_split(tree, files, folder, info.limit))
        if examples.problems:
            logging.warning("M3IT %s: %s", split, summarize_problems(examples.problems))
        if not len(examples):
            raise DataError(f"M3IT {split} below {tree.root} has no row that can be used; `gitllm m3it check` says why")
        return examples

    def _tell_missing(self) -> None:
        missing = f"missing of M3IT below {self.tree.root}:\n  " + "\n  ".join(self.tree.missing)
        if not self.info.allow_missing:
            raise DataError(
                f"{missing}\nDownload them, choose with build_info.configs and build_info.splits, or set "
                "build_info.allow_missing: true to go on without them."
            )
        logging.warning("%s", missing)


class ShardsSource(Source):
    """A folder of shards; of those on a disk the sizes are compared with the manifest."""

    where = "datasets.m3it_wds"
    build_info_keys = frozenset({"shards", "preset", "configs", "splits", "features"})
    config_keys = frozenset(
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

    def __init__(self, config: DictConfig):
        super().__init__(config)
        if not self.info.get("shards"):
            raise ConfigError(_NO_SHARDS)
        self.folder = ShardFolder(str(self.info.shards), config.cache_dir)
        self.manifest = self.folder.read_manifest()
        self.configs = self._choose_configs()
        self.splits = self._choose_splits()
        self.place = f" from {self.folder.location}"

    @classmethod
    def check_values(cls, config: DictConfig) -> None:
        """Check what only streams have.

        Raises:
            ConfigError: if a value is out of range.
        """
        if config.on_error not in ("stop", "skip"):
            raise ConfigError(f"{cls.where}.on_error is {config.on_error!r}, expected stop or skip")
        for key, least in (("shuffle_shards", 1), ("seed", 0)):
            if not isinstance(config[key], int) or config[key] < least:
                raise ConfigError(f"{cls.where}.{key} is {config[key]!r}, expected {least} or more")

    def open(self, split: str, items: ItemMaker) -> M3ITShards:
        """Open a split as a stream, which is endless and in random order for ``train``."""
        table = ItemTable(self.manifest, self.configs, split, self.texts_per_image(split))
        self._check_files(table)
        features = None
        if self.info.get("features"):
            processor = describe_processor(items.vis_processor)
            features = FeatureReader(features_folder(self.info), table.shards, processor)
        order = self._order(table) if split == "train" else None
        return M3ITShards(items, table, self.folder, order, on_error=self.config.on_error, features=features)

    def _choose_configs(self) -> list[str]:
        """Choose the configurations by a preset, or by names and wildcards; all where nothing is said."""
        known = list(self.manifest.configs)
        # In the order of the manifest, which is that of the items: names in another order are the same data.
        patterns = self.names("configs") or ["*"]
        if self.info.get("preset") is not None:
            if self.info.get("configs") is not None:
                raise ConfigError(f"{self.where}.build_info has a preset and configs; give one of them")
            patterns = [entry.name for entry in get_preset(str(self.info.preset))]
        unmatched = [pattern for pattern in patterns if not fnmatch.filter(known, pattern)]
        if unmatched:
            raise ConfigError(
                f"{self.where}.build_info: there are no shards of {', '.join(unmatched)}, but of {', '.join(known)}; "
                "make them, or choose among these by configs"
            )
        return [name for name in known if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]

    def _choose_splits(self) -> list[str]:
        """Choose the splits that are asked for, or else those that the configurations have."""
        chosen = [self.manifest.configs[name] for name in self.configs]
        there = [split for split in SPLITS if any(split in splits and splits[split].groups for splits in chosen)]
        splits = self.names("splits") or there
        missing = [split for split in splits if split not in there]
        if missing or not splits:
            raise ConfigError(
                f"{self.where}.build_info.splits: there are no records of {', '.join(missing) or 'any split'}; "
                f"{', '.join(self.configs)} have {', '.join(there) or 'none'}"
            )
        return splits

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

    def _check_files(self, table: ItemTable) -> None:
        # Now rather than in the middle of training; of a server nothing is asked, which would take a request a shard.
        problems = self.folder.find_missing(table.shards)
        if not problems:
            return
        message = f"{len(problems)} of {len(table.shards)} shards of {table.split} are damaged:\n  " + "\n  ".join(
            problems[:10]
        )
        if self.config.on_error == "stop":
            raise DataError(f"{message}\nCopy them again, or set {self.where}.on_error: skip to go without them.")
        logging.warning("%s", message)


def _annotations(cfg: Mapping[str, Any]) -> Mapping[str, Any]:
    return (cfg.get("build_info") or {}).get("annotations") or {}


def _read_annotation(name: str, node: Any) -> dict[str, Any]:
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

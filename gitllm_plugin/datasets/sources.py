"""Where M3IT is read from: files that a configuration names, the tree as it is downloaded, or shards.

A source is made of the node of its data set. It finds what there is when it is made, before processors are built, and
opens one split at a time. Files and tree give map-style data sets, shards give streams; items and batches are the same.
"""

import fnmatch
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from gitllm_plugin.datasets.datasets.m3it_dataset import M3ITDataset
from gitllm_plugin.datasets.datasets.m3it_shards import M3ITShards
from gitllm_plugin.datasets.features import describe_processor, features_folder
from gitllm_plugin.datasets.items import ItemMaker
from gitllm_plugin.datasets.settings import M3ITInstructSettings, M3ITSettings, M3ITWdsSettings, as_list
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.m3it.catalog import SPLITS, get_preset
from gitllm_plugin.m3it.examples import IndexedExamples, JsonlExamples
from gitllm_plugin.m3it.group import ALL_TEXTS
from gitllm_plugin.m3it.problems import summarize_problems
from gitllm_plugin.m3it.scan import default_index_folder, open_split
from gitllm_plugin.m3it.shards.features import FeatureReader
from gitllm_plugin.m3it.shards.folder import ShardFolder
from gitllm_plugin.m3it.shards.mixture import EpochOrder, ItemTable, choose_quotas
from gitllm_plugin.m3it.tree import find_sources, find_tree


class Source:
    """What the three sources have in common.

    Args:
        settings: the node of the data set.

    Attributes:
        where: the node's dotted path, for messages.
        splits: the names of those that can be opened.
        place: where it reads, for logs: empty, or words that follow the split's name.

    Raises:
        ConfigError: if what is chosen is not there.
        DataError: if files are missing.
    """

    where: ClassVar[str]
    splits: Sequence[str]
    place = ""

    def __init__(self, settings: Any):
        self.settings = settings
        self.info = settings.build_info

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
        settings = self.settings
        most = settings.texts_per_image if split == "train" else settings.eval_texts_per_image
        return ALL_TEXTS if most == "all" else most


class _Examples(Source):
    """A source whose examples have numbers."""

    def open(self, split: str, items: ItemMaker) -> M3ITDataset:
        """Open a split."""
        # In evaluation answers of one length come together, since generation runs as long as a batch's longest answer.
        return M3ITDataset(
            vis_processor=items.vis_processor,
            text_processor=items.text_processor,
            examples=self.read(split),
            texts_per_image=self.texts_per_image(split),
            separate_configs=split != "train",
            on_error=self.settings.on_error,
            trains=split == "train",
        )

    def read(self, split: str) -> IndexedExamples:
        """Read the rows of a split once."""
        raise NotImplementedError


class FilesSource(_Examples):
    """Uniform rows in files that ``build_info.annotations`` names by split; all of them must be right."""

    where = "datasets.m3it"

    def __init__(self, settings: M3ITSettings):
        super().__init__(settings)
        self.splits = list(self.info.annotations)

    def read(self, split: str) -> IndexedExamples:
        """Find and check the files of a split."""
        node = self.info.annotations[split]
        return JsonlExamples(
            find_sources(node.storage), allow_text_only=self.settings.allow_text_only, limit=node.limit
        )


class TreeSource(_Examples):
    """Any mixture from the tree as it is downloaded. Rows that cannot be used are left out and told."""

    where = "datasets.m3it_instruct"

    def __init__(self, settings: M3ITInstructSettings):
        super().__init__(settings)
        info = self.info
        names = as_list(info.configs) or [entry.name for entry in get_preset(info.preset)]
        splits = as_list(info.splits) or list(SPLITS)
        self.tree = find_tree(info.root, names, splits, seed=info.seed, allow_text_only=settings.allow_text_only)
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

    def __init__(self, settings: M3ITWdsSettings):
        super().__init__(settings)
        self.folder = ShardFolder(self.info.shards, settings.cache_dir)
        self.manifest = self.folder.read_manifest()
        self.configs = self._choose_configs()
        self.splits = self._choose_splits()
        self.place = f" from {self.folder.location}"

    def open(self, split: str, items: ItemMaker) -> M3ITShards:
        """Open a split as a stream, which is endless and in random order for ``train``."""
        table = ItemTable(self.manifest, self.configs, split, self.texts_per_image(split))
        self._check_files(table)
        features = None
        if self.info.features:
            processor = describe_processor(items.vis_processor)
            features = FeatureReader(features_folder(self.info.shards, self.info.features), table.shards, processor)
        order = self._order(table) if split == "train" else None
        return M3ITShards(items, table, self.folder, order, on_error=self.settings.on_error, features=features)

    def _choose_configs(self) -> list[str]:
        """Choose the configurations by a preset, or by names and wildcards; all where nothing is said."""
        known = list(self.manifest.configs)
        # In the order of the manifest, which is that of the items: names in another order are the same data.
        patterns = as_list(self.info.configs) or ["*"]
        if self.info.preset is not None:
            patterns = [entry.name for entry in get_preset(self.info.preset)]
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
        splits = as_list(self.info.splits) or there
        missing = [split for split in splits if split not in there]
        if missing or not splits:
            raise ConfigError(
                f"{self.where}.build_info.splits: there are no records of {', '.join(missing) or 'any split'}; "
                f"{', '.join(self.configs)} have {', '.join(there) or 'none'}"
            )
        return splits

    def _order(self, table: ItemTable) -> EpochOrder:
        settings = self.settings
        try:
            quotas = choose_quotas(
                {name: len(table.config_items(name)) for name in table.config_shards},
                weights=settings.weights,
                temperature=settings.temperature,
                items_per_epoch=settings.items_per_epoch,
            )
        except ConfigError as error:
            raise ConfigError(f"{self.where}: {error}") from error
        return EpochOrder(table, quotas, settings.seed, settings.shuffle_shards)

    def _check_files(self, table: ItemTable) -> None:
        # Now rather than in the middle of training; of a server nothing is asked, which would take a request a shard.
        problems = self.folder.find_missing(table.shards)
        if not problems:
            return
        message = f"{len(problems)} of {len(table.shards)} shards of {table.split} are damaged:\n  " + "\n  ".join(
            problems[:10]
        )
        if self.settings.on_error == "stop":
            raise DataError(f"{message}\nCopy them again, or set {self.where}.on_error: skip to go without them.")
        logging.warning("%s", message)

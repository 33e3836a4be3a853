"""The builder of M3IT from the tree that is downloaded, for LAVIS."""

import logging
from pathlib import Path

from lavis.common.registry import registry

from gitllm_plugin.config_keys import check_keys
from gitllm_plugin.datasets.builders.m3it_builder import M3ITBuilder
from gitllm_plugin.datasets.datasets.m3it_dataset import M3ITDataset
from gitllm_plugin.datasets.settings import M3ITInstructSettings
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.m3it.catalog import SPLITS
from gitllm_plugin.m3it.examples import IndexedExamples
from gitllm_plugin.m3it.index import default_index_folder, open_split
from gitllm_plugin.m3it.presets import PRESETS, get_preset
from gitllm_plugin.m3it.report import summarize_problems
from gitllm_plugin.m3it.tree import Tree, find_tree
from gitllm_plugin.resources import config_path

_INFO_KEYS = ("root", "preset", "configs", "splits", "seed", "allow_missing", "limit", "index_folder")

_NO_TREE = f"""The data set m3it_instruct needs a tree and a choice of it, for example
  build_info: {{root: ~/M3IT, preset: article_exp3}}   or   build_info: {{root: ~/M3IT, configs: [coco, vqa-v2]}}
The presets are {", ".join(PRESETS)}; `gitllm m3it list` shows what they are."""


@registry.register_builder("m3it_instruct")
class M3ITInstructBuilder(M3ITBuilder):
    """Builds the splits of any mixture of M3IT from its files.

    Rows that cannot be used are left out, counted by kind and named in the log. ``configs/datasets/m3it_instruct/
    defaults.yaml`` shows all that can be set.

    Args:
        cfg: the node ``datasets.m3it_instruct`` of a configuration, a path of a YAML file that has it, or None for
            the defaults, which name no files. What is not given is taken from the defaults.

    Raises:
        ConfigError: if a key or value is not known.
    """

    DATASET_CONFIG_DICT = {"default": config_path("datasets", "m3it_instruct", "defaults.yaml")}
    Settings = M3ITInstructSettings
    where = "datasets.m3it_instruct"

    def build_datasets(self) -> dict[str, M3ITDataset]:
        """Finds and opens the files of every split; what was not read before is read once. Nothing is downloaded.

        Raises:
            ConfigError: if no tree or mixture is named, or neither exists.
            DataError: if files are missing, unless that is allowed.
        """
        tree = self._find_tree()
        self.build_processors()
        datasets = {}
        for split in SPLITS:
            examples = self._open(tree, split)
            if examples is not None:
                datasets[split] = self._make_dataset(split, examples)
                logging.info("M3IT %s of %s: %s", split, tree.root, datasets[split].describe())
        return datasets

    def _find_tree(self) -> Tree:
        info = self.config.build_info or {}
        check_keys(f"{self.where}.build_info", info, _INFO_KEYS)
        if not info.get("root") or (info.get("preset") is None) == (info.get("configs") is None):
            raise ConfigError(_NO_TREE)
        names = self._names("configs") or [entry.name for entry in get_preset(str(info.preset))]
        if info.limit is not None and (not isinstance(info.limit, int) or info.limit < 1):
            raise ConfigError(f"{self.where}.build_info.limit is {info.limit!r}, expected 1 or more rows of each file")
        splits = self._names("splits") or list(SPLITS)
        check_keys(f"{self.where}.build_info.splits", splits, SPLITS)
        tree = find_tree(
            str(info.root), names, splits, seed=int(info.seed), allow_text_only=self.config.allow_text_only
        )
        if tree.missing:
            missing = f"missing of M3IT below {tree.root}:\n  " + "\n  ".join(tree.missing)
            if not info.allow_missing:
                raise DataError(
                    f"{missing}\nDownload them, choose with build_info.configs and build_info.splits, or set "
                    "build_info.allow_missing: true to go on without them."
                )
            logging.warning("%s", missing)
        return tree

    def _open(self, tree: Tree, split: str) -> IndexedExamples | None:
        parts = [part for part in tree.splits if part.split == split]
        if not parts:
            return None
        info = self.config.build_info
        folder = Path(info.index_folder).expanduser() if info.index_folder else default_index_folder()
        examples = IndexedExamples(file for part in parts for file in open_split(tree, part, folder, info.limit))
        if examples.problems:
            logging.warning("M3IT %s: %s", split, summarize_problems(examples.problems))
        if not len(examples):
            raise DataError(f"M3IT {split} below {tree.root} has no row that can be used; `gitllm m3it check` says why")
        return examples

"""Which rows of a tree do not fit into the context of the model that a configuration describes."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.host.launch import build_model
from gitllm_plugin.m3it.examples import IndexedExamples
from gitllm_plugin.m3it.problems import Problem
from gitllm_plugin.m3it.scan import open_split
from gitllm_plugin.m3it.tree import Tree


def find_long_texts(
    tree: Tree, cfg_path: str | Path, options: Sequence[str], index_folder: Path
) -> dict[tuple[str, str], list[Problem]]:
    """Find texts that are too long however short their questions.

    Args:
        tree: what was found below a root.
        cfg_path: of a training; its model, the processors of its first data set of M3IT and its task say what fits.
        options: overrides of the file.
        index_folder: where is kept what was found in the files.

    Returns:
        by configuration and split of the tree; splits without such texts are not there.

    Raises:
        ConfigError: the file, an option or a name in them is wrong, or it names no data set of M3IT, or a model that
            does not say what fits.
    """
    cfg, task, model = build_model(cfg_path, options)
    from lavis.common.registry import registry

    from gitllm_plugin.datasets.builders.m3it_builder import SourceBuilder
    from gitllm_plugin.datasets.datasets.m3it_dataset import M3ITDataset
    from gitllm_plugin.protocols import FittingModel, offers
    from gitllm_plugin.runners.fitting import read_in_evaluation

    builders: dict[str, Any] = registry.mapping["builder_name_mapping"]
    found = [(builders[name], node) for name, node in cfg.datasets_cfg.items()]
    builder = next((each(node) for each, node in found if issubclass(each, SourceBuilder)), None)
    if builder is None or not offers(model, FittingModel):
        raise ConfigError(f"{cfg_path} names no data set of M3IT, or a model that does not say which texts fit")
    builder.build_processors()
    answers, new_tokens = read_in_evaluation(task, cfg.run_cfg)
    problems = {}
    for split in tree.splits:
        items = builder.make_items(split.split)
        examples = IndexedExamples(open_split(tree, split, index_folder))
        data = M3ITDataset(items.vis_processor, items.text_processor, examples, on_error="skip")
        trained = split.split == "train"
        reads = {"answers": answers or trained, "new_tokens": 0 if trained else new_tokens}
        if long := data.find_long_texts(partial(model.text_rule, **reads)):
            relative = [replace(each, file=tree.relative(Path(each.file))) for each in long.values()]
            problems[split.config, split.split] = relative
    return problems

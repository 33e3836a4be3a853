"""A configuration that names ``model.folder`` takes the folder's processors where it says nothing else of them.

It is done to LAVIS's ``Config``, which all ways go through: ``gitllm``, and LAVIS's own scripts.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gitllm_plugin.host.config_file import load_config
from gitllm_plugin.host.patching import repair_of


@repair_of("lavis.common.config:Config.__init__")
def take_processors_of_folder(found: Any) -> Any:
    """Make ``Config`` look at the folder when all is merged. Calling it again does nothing.

    Raises:
        ConfigError: from ``Config``, of a file that no configuration can be read from, before LAVIS reads it.
    """

    @functools.wraps(found)
    def init(self: Any, args: Any) -> None:
        given = load_config(Path(args.cfg_path))
        found(self, args)
        from omegaconf import OmegaConf

        _fill(self.config, OmegaConf.merge(given, self._build_opt_list(args.options)))

    return init


def _fill(config: Any, given: Any) -> None:
    """Put the folder's processors into a configuration, and say in one line what of them it changes.

    Args:
        config: the merged configuration, changed in place.
        given: what its author wrote, file and options, without the defaults of model types and data sets.
    """
    model = config.get("model") or {}
    if model.get("arch") != "git_llm" or not model.get("folder"):
        return
    from gitllm_plugin.modeling.description import DESCRIPTION

    folder = Path(str(model.folder)).expanduser()
    if not (folder / DESCRIPTION).is_file():
        return  # the model says so when it is built
    from gitllm_plugin.processors.of_folder import FolderProcessors

    own = FolderProcessors(folder)
    told = [*_of_model(own, given), *_of_datasets(own, config, given)]
    if told and os.environ.get("RANK", "0") == "0":
        logging.warning(
            "the configuration changes how the model in %s is asked: %s; leave out what is not meant",
            folder,
            "; ".join(told),
        )


def _of_model(own: Any, given: Any) -> Iterator[str]:
    model = given.get("model") or {}
    chat = model.get("chat_template")
    kept = bool(own.settings.get("chat_template"))
    if chat is not None and bool(chat) != kept:
        yield f"model.chat_template is {str(bool(chat)).lower()}, and {str(kept).lower()} in the folder"
    if (places := model.get("image_places")) not in (None, there := own.settings.get("image_places") or "front"):
        yield f"model.image_places is {places}, and {there} in the folder"
    if model.get("prompt") and (said := own.prompt_difference(str(model.prompt))):
        yield said


def _of_datasets(own: Any, config: Any, given: Any) -> Iterator[str]:
    from lavis.common.registry import registry
    from omegaconf import OmegaConf

    from gitllm_plugin.processors.of_folder import TEXT, VIS, is_ours

    for name, dataset in config.datasets.items():
        author = _mapping((given.get("datasets") or {}).get(name))
        builder = registry.get_builder_class(name)
        for kind in (VIS, TEXT):
            merged, written = _mapping(dataset.get(kind)), _mapping(author.get(kind))
            for phase in sorted({*merged, "train", "eval"}):
                said, where = _mapping(written.get(phase)), f"datasets.{name}.{kind}.{phase}"
                default = _mapping(merged.get(phase)).get("name")
                if default is None or not is_ours(default, kind):
                    default = _processor_of_ours(builder, dataset, kind, phase)
                filled = own.fill(kind, phase, said, default)
                if filled != said:
                    # What goes with another processor is nothing to ours.
                    OmegaConf.update(config, where, filled, merge=hasattr(builder, "Settings"))
                full = _mapping(OmegaConf.select(config, where))
                yield from (f"{where}.{difference}" for difference in own.differences(kind, full))


def _processor_of_ours(builder: Any, dataset: Any, kind: str, phase: str) -> str | None:
    """Choose a processor for a data set of LAVIS's; None where its texts are answers, which belong into no prompt."""
    from lavis.datasets.datasets.multimodal_classification_datasets import MultimodalClassificationDataset
    from lavis.datasets.datasets.vqa_datasets import VQADataset, VQAEvalDataset

    from gitllm_plugin.processors.of_folder import VIS

    if kind == VIS:
        return f"git_llm_{'video' if dataset.get('data_type') == 'videos' else 'image'}_{phase}"
    data = getattr(builder, "eval_dataset_cls" if phase == "eval" else "train_dataset_cls", None)
    asks = isinstance(data, type) and issubclass(data, (VQADataset, VQAEvalDataset, MultimodalClassificationDataset))
    return "git_llm_instruction" if asks else None


def _mapping(node: Any) -> Mapping[str, Any]:
    """Give a node as a dictionary; one of another kind is empty."""
    from omegaconf import OmegaConf

    if OmegaConf.is_dict(node):
        return dict(OmegaConf.to_container(node, resolve=True))  # type: ignore[arg-type]
    return node if isinstance(node, Mapping) else {}

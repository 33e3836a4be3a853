"""Whole configurations for every registered class of this package, and every key that one declares."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import gitllm_plugin
from gitllm_plugin.config import describe
from gitllm_plugin.config.node import fields_of
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.host.config_check import check_config
from tests.m3it_files import write_m3it_jsonl

KINDS = ("model", "builder", "processor", "task", "runner")
_MODELS = {"git_llm": "tiny_opt", "git": "base"}


@dataclass(frozen=True)
class Owner:
    """A registered class of this package.

    Attributes:
        kind: of registry.
        name: that it is registered under.
        settings: what it declares.
    """

    kind: str
    name: str
    settings: type

    @property
    def where(self) -> tuple[str, ...]:
        """The path of its node in :func:`whole_file`."""
        if self.kind == "model":
            return ("model",)
        if self.kind == "builder":
            return ("datasets", self.name)
        if self.kind == "processor":
            return ("datasets", "m3it", _processor_kind(self.name), "train")
        return ("run",)


@dataclass(frozen=True)
class DeclaredKey:
    """A key of a registered class's node, or of a node inside.

    Attributes:
        owner: the class.
        path: from the file's root.
        hint: its type.
    """

    owner: Owner
    path: tuple[str, ...]
    hint: Any

    def __str__(self) -> str:
        return f"{self.owner.name}:{'.'.join(self.path[len(self.owner.where) :])}"


def owners() -> list[Owner]:
    """All registered classes of this package."""
    gitllm_plugin.register()
    from lavis.common.registry import registry

    return [
        Owner(kind, name, cls.Settings)
        for kind in KINDS
        for name, cls in sorted(registry.mapping[f"{kind}_name_mapping"].items())
        if cls.__module__.startswith("gitllm_plugin.")
    ]


def declared_keys() -> list[DeclaredKey]:
    """Every key that one of them declares."""
    return [key for owner in owners() for key in _keys_of(owner, owner.settings, owner.where)]


def _keys_of(owner: Owner, settings: type, path: tuple[str, ...]) -> Iterator[DeclaredKey]:
    hints = fields_of(settings)
    for key in describe(settings):
        yield DeclaredKey(owner, (*path, key.name), hints[key.name])
        if key.nested is not None:
            inside = ("train",) if key.nested.WHERE.endswith(".SPLIT") else ()
            yield from _keys_of(owner, key.nested, (*path, key.name, *inside))


def whole_file(owner: Owner, folder: Path) -> dict[str, Any]:
    """A configuration without a fault that the class reads a node of.

    Args:
        owner: the class.
        folder: has ``train.jsonl`` and ``val.jsonl``, see :func:`write_data`.
    """
    model, data, task = "git_llm", "m3it", "m3it"
    if owner.kind == "model":
        model = owner.name
    elif owner.kind == "builder":
        data = owner.name
    elif owner.kind == "task":
        task = owner.name
    node: dict[str, Any] = {"build_info": _BUILD_INFO[data](str(folder))}
    if owner.kind == "processor":
        node[_processor_kind(owner.name)] = {"train": {"name": owner.name}}
    return {
        "model": {"arch": model, "model_type": _MODELS[model]},
        "datasets": {data: node},
        "run": {"task": task, "runner": "git_llm", "init_lr": 1e-3, "max_epoch": 1, "device": "cpu"},
    }


def write_data(folder: Path) -> None:
    """Write the files that :func:`whole_file` names."""
    for split in ("train", "val"):
        write_m3it_jsonl(folder / f"{split}.jsonl", rows=2)


_BUILD_INFO = {
    "m3it": lambda folder: {"annotations": {"train": {"storage": f"{folder}/train.jsonl"}}},
    "m3it_instruct": lambda folder: {"root": folder, "preset": "core"},
    "m3it_wds": lambda folder: {"shards": folder},
    "git_llm_visdial": lambda folder: {
        "annotations": {"train": {"storage": f"{folder}/train.jsonl"}},
        "images": {"storage": folder},
    },
}


def _processor_kind(name: str) -> str:
    return "text_processor" if name == "git_llm_instruction" else "vis_processor"


def with_value(config: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The configuration with a value put at a path."""
    *outer, last = path
    inside = config
    for step in outer:
        inside = inside.setdefault(step, {})
    inside[last] = value
    return config


def faults_of(config: Mapping[str, Any], path: Path) -> list[str]:
    """The faults of a configuration, written to ``path``, as a command finds them; one text each."""
    path.write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
    try:
        check_config(path)
    except ConfigError as error:
        head, *faults = str(error).split("\n  - ")
        assert head.startswith(f"{path}: {len(faults)} error"), error
        return faults
    return []

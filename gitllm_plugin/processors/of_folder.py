"""How a model in a folder sees pictures and prompts, and what of it a configuration changes.

A folder says it itself: ``image_encoder/preprocessor_config.json`` for pictures, ``settings`` in ``git_llm.json`` for
the rest. It stands where a configuration gives nothing else; the defaults of data sets do not count as given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lavis.common.registry import registry

from gitllm_plugin.config import read
from gitllm_plugin.m3it.prompts import find_template
from gitllm_plugin.modeling.description import IMAGE_ENCODER, read_description
from gitllm_plugin.processors.settings import InstructionSettings, PictureSettings
from gitllm_plugin.processors.transform_config import make_transform

VIS, TEXT = "vis_processor", "text_processor"
PREPROCESSOR = "preprocessor_config.json"
_NORMALIZATION = {"normalization", "mean", "std"}
_BY_ENCODER = {*_NORMALIZATION, "encoder", "image_size", "resize", "resampling"}
"""Keys whose values an encoder's own image processor gives."""


class FolderProcessors:
    """What a folder says of pictures and prompts.

    Args:
        folder: of ``gitllm export`` or ``gitllm convert-checkpoint``.

    Attributes:
        settings: all that was kept with the model.
        nodes: of ``vis_processor`` and ``text_processor``, as in a configuration; empty where the folder says nothing.

    Raises:
        ConfigError: the folder's description cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.settings: dict[str, Any] = read_description(folder)["settings"]
        self.nodes = {kind: _without_nulls(self.settings.get(kind) or {}) for kind in (VIS, TEXT)}
        if (folder / IMAGE_ENCODER / PREPROCESSOR).is_file():
            kept = {key: value for key, value in self.nodes[VIS].items() if key not in _BY_ENCODER}
            self.nodes[VIS] = {"name": "git_llm_image_eval", **kept, "encoder": str(folder / IMAGE_ENCODER)}

    @property
    def template(self) -> str:
        """Of the folder's prompts."""
        return self.nodes[TEXT].get("template", InstructionSettings().template)

    def fill(self, kind: str, phase: str, given: Mapping[str, Any], default: str | None) -> dict[str, Any]:
        """Make a processor's node: what the configuration gives, and the folder's where it gives nothing.

        Args:
            kind: ``vis_processor`` or ``text_processor``.
            phase: ``train`` or ``eval``.
            given: what the configuration itself says of it.
            default: the processor where the configuration names none.
        """
        said, own = _without_nulls(given), dict(self.nodes[kind])
        own_name = own.pop("name", None)
        if not self.nodes[kind]:
            return said
        if own_name is not None and not is_ours(own_name, kind):
            # One of another package: as a whole, or not at all.
            return {"name": own_name, **own, **said} if "name" not in said and default and phase == "eval" else said
        name = said.get("name", default)
        if name is None or not is_ours(name, kind):
            return said
        if "encoder" in said:
            own = {key: value for key, value in own.items() if key not in _BY_ENCODER}
        if said.keys() & _NORMALIZATION:
            own = {key: value for key, value in own.items() if key not in _NORMALIZATION}
        if said.get("random_resized_crop"):
            own.pop("resize", None)
        known = _settings_of(name).__dataclass_fields__
        return {"name": name, **{key: value for key, value in own.items() if key in known}, **said}

    def differences(self, kind: str, filled: Mapping[str, Any]) -> Iterable[str]:
        """Say what of a node of :meth:`fill` is not the folder's, in a part of a sentence each."""
        node, name = self.nodes[kind], filled.get("name")
        if not node or name is None:
            return
        own_name = node.get("name")
        if not is_ours(name, kind) or not is_ours(own_name or name, kind):
            # What LAVIS's processors do to captions, which are answers, is no matter of the prompt.
            if own_name not in (None, name) and not (kind == TEXT and "caption" in f"{name} {own_name}"):
                yield f"name is {name}, and {own_name} in the folder"
            return
        settings = _settings_of(name)
        own = {key: value for key, value in node.items() if key in settings.__dataclass_fields__}
        here, there = (_told(kind, read(settings, f"{kind}", values)) for values in (filled, own))
        for key, value in there.items():
            if here[key] != value and value is not None:
                yield f"{key} is {here[key]}, and {value} in the folder"

    def prompt_difference(self, prompt: str) -> str | None:
        """Say so where ``model.prompt`` is of another template than the folder's prompts."""
        name = find_template(prompt)
        if name in (None, self.template):
            return None
        return f"model.prompt is of the template {name}, and {self.template} in the folder"


def is_ours(name: Any, kind: str) -> bool:
    """Tell whether a name is that of one of this package's processors of pictures or of prompts."""
    settings = _settings_of(name) if isinstance(name, str) else None
    return isinstance(settings, type) and issubclass(settings, PictureSettings if kind == VIS else InstructionSettings)


def _told(kind: str, settings: Any) -> dict[str, Any]:
    if kind == TEXT:
        return {"template": settings.template, "instruction": settings.instruction}
    transform = make_transform(settings)
    normalization = [[round(value, 4) for value in values] for values in (transform.mean, transform.std)]
    told = {
        "image_size": transform.image_size,
        "mean and std": normalization,
        "resize": transform.resize,
        "resampling": transform.resampling,
        "max_tiles": transform.max_tiles,
        "thumbnail": transform.thumbnail if transform.max_tiles > 1 else None,
    }
    # Training cuts out at random what it squashes.
    if getattr(settings, "random_resized_crop", None):
        del told["resize"]
    return told | ({"num_frames": settings.num_frames} if hasattr(settings, "num_frames") else {})


def _settings_of(name: str) -> Any:
    return getattr(registry.get_processor_class(name), "Settings", None)


def _without_nulls(node: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if value is not None}

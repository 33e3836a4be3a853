"""From Hugging Face's ``preprocessor_config.json`` to the transform that it describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.processors.image_transform import ImageTransform


def read_transform(config: Mapping[str, Any]) -> ImageTransform:
    """The transform of an image processor that squashes to a square, or cuts out the centre.

    Args:
        config: as :meth:`ImageTransform.as_preprocessor_config` writes it, or the one of a CLIP or SigLIP model.

    Raises:
        ConfigError: it resizes to something else.
    """
    size = config.get("size")
    if isinstance(size, int):  # older files of CLIP's
        size = {"shortest_edge": size}
    sides = set((size or {}).values())
    if len(sides) != 1 or "image_mean" not in config or "image_std" not in config:
        raise ConfigError(
            f"preprocessor_config.json has size {config.get('size')!r}, image_mean {config.get('image_mean')!r} and "
            f"image_std {config.get('image_std')!r}; expected one side (of a square, or the shortest edge) and both "
            "triples"
        )
    return ImageTransform(
        image_size=sides.pop(),
        mean=config["image_mean"],
        std=config["image_std"],
        resize="shortest_edge" if "shortest_edge" in size else "squash",
    )

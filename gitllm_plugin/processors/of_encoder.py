"""Size and normalization of pictures by what an image encoder says, for configurations that do not say them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling.pretrained import load_config
from gitllm_plugin.modeling.tiny import IMAGE_ENCODERS
from gitllm_plugin.modeling.vision import TIMM, TOWERS
from gitllm_plugin.processors.settings import PictureSettings
from gitllm_plugin.processors.transform_config import make_transform, read_encoder

NORMALIZATION = {"normalization", "mean", "std"}


def sizes_of_encoder(name: str) -> dict[str, Any]:
    """Find what of an encoder's pictures is not as :class:`PictureSettings` has it where nothing is said.

    Its image processor says it, of timm's models their published settings; an encoder without says its size alone,
    where it takes no other.

    Args:
        name: a hub name, a folder, or ``tiny:`` and a kind.

    Returns:
        ``image_size``, ``mean`` and ``std``, or some of them; nothing where they are the defaults, or not to be found:
        the model says so when it is built.
    """
    usual = make_transform(PictureSettings())
    found = _said(name)
    size, (mean, std) = found.get("image_size"), found.get("normalization", (usual.mean, usual.std))
    sizes = {} if size in (None, usual.image_size) else {"image_size": size}
    same = torch.allclose(torch.tensor([*mean, *std]), torch.tensor([*usual.mean, *usual.std]), atol=1e-6)
    return sizes if same else {**sizes, "mean": list(mean), "std": list(std)}


def _said(name: str) -> dict[str, Any]:
    kind = name.removeprefix("tiny:")
    if kind != name:
        return {"image_size": IMAGE_ENCODERS.get(kind, ("", {}))[1].get("image_size")}
    folder = str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name
    try:
        config: Any = load_config(folder, "image encoder")
    except ConfigError:
        return {}
    try:
        return read_encoder(folder)
    except ConfigError:
        pass  # it has no processor, or one that is followed in part only
    if config.model_type == TIMM:
        import timm

        published = timm.get_pretrained_cfg(config.architecture)
        if published is None:
            return {}
        mean, std = (tuple(map(float, numbers)) for numbers in (published.mean, published.std))
        return {"image_size": published.input_size[-1], "normalization": (mean, std)}
    vision = getattr(config, "vision_config", config)
    tower = TOWERS.get(vision.model_type)
    takes_others = tower is None or tower.fits_positions or vision.model_type.startswith("siglip2")
    return {} if takes_others else {"image_size": vision.image_size}

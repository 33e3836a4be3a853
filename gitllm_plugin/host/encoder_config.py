"""A configuration that does not say how large pictures are, or how they are normalized, takes it of its image encoder.

It is done where LAVIS's tasks build data sets, which all ways go through: ``gitllm``, and LAVIS's own scripts. Not
earlier: what is on the model hub is fetched for it, as the model is next.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from gitllm_plugin.common.run_files import weights_of_own_config
from gitllm_plugin.host.patching import repair_of


@repair_of("lavis.tasks.base_task:BaseTask.build_datasets")
def take_sizes_of_encoder(found: Any) -> Any:
    """Make ``build_datasets`` look at the encoder first. Calling it again does nothing."""

    @functools.wraps(found)
    def build_datasets(self: Any, cfg: Any) -> Any:
        # A run's own configuration says all, or means what was usual when it was trained.
        own = weights_of_own_config(getattr(getattr(cfg, "args", None), "cfg_path", ""), [])
        if own is None and hasattr(cfg, "config"):
            fill_from_encoder(cfg.config)
        return found(self, cfg)

    return build_datasets


def fill_from_encoder(config: Any) -> None:
    """Put the encoder's size and normalization into nodes that say neither, where they are not the defaults."""
    model = config.get("model") or {}
    encoder = model.get("image_encoder")
    if model.get("arch") != "git_llm" or model.get("folder") or not encoder:
        return
    from omegaconf import OmegaConf

    from gitllm_plugin.processors.of_encoder import NORMALIZATION, sizes_of_encoder
    from gitllm_plugin.processors.of_folder import VIS, is_ours

    found: dict[str, Any] | None = None
    for name, dataset in config.datasets.items():
        for phase, node in _mapping(dataset.get(VIS)).items():
            said = {key for key, value in _mapping(node).items() if value is not None}
            if not is_ours(_mapping(node).get("name"), VIS) or "encoder" in said:
                continue
            known = {"image_size"} if "image_size" in said else set()
            known |= {"mean", "std"} if said & NORMALIZATION else set()
            if known == {"image_size", "mean", "std"}:
                continue
            found = sizes_of_encoder(str(encoder)) if found is None else found
            missing = {key: value for key, value in found.items() if key not in known}
            OmegaConf.update(config, f"datasets.{name}.{VIS}.{phase}", missing)


def _mapping(node: Any) -> Mapping[str, Any]:
    return node if isinstance(node, Mapping) else {}

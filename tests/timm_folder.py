"""The folder of an encoder of timm's, as transformers reads one: its configuration alone."""

from typing import Any

from transformers import TimmWrapperConfig


def write_timm(folder: Any, pretrained: dict[str, Any]) -> str:
    """Write a configuration; ``pretrained`` says how pictures are prepared."""
    settings = {"architecture": "resnet18", "num_classes": 0, "pretrained_cfg": pretrained}
    TimmWrapperConfig.from_dict(settings).save_pretrained(folder)
    return str(folder)

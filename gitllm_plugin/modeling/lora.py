"""LoRA on the language model, and on nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from peft import LoraConfig, inject_adapter_in_model
from transformers import PreTrainedModel

from gitllm_plugin.errors import ConfigError


@dataclass(frozen=True)
class LoraSettings:
    """LoRA's hyper-parameters (Hu et al. 2021).

    Attributes:
        rank: rank of the update.
        alpha: the update is scaled by ``alpha / rank``.
        dropout: dropout before the update.
        targets: names of the linear layers to adapt; None: the family's query, key and value projections.
    """

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05
    targets: tuple[str, ...] | None = None


def inject_lora(language_model: PreTrainedModel, settings: LoraSettings, default_targets: tuple[str, ...]) -> None:
    """Put LoRA layers into ``language_model``, in place.

    The base weights keep their values and are frozen by the caller. Only the language model is handed to
    PEFT, so that a target name which the image encoder also uses (``q_proj``) reaches nothing else.

    Raises:
        ConfigError: a target name that no layer has.
    """
    targets = settings.targets or default_targets
    leaves = {name.rsplit(".", 1)[-1] for name, _ in language_model.named_modules()}
    if unknown := sorted(set(targets) - leaves):
        raise ConfigError(
            f"LoRA targets {unknown} match no layer of {type(language_model).__name__}; "
            f"this family's defaults are {list(default_targets)}"
        )
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=list(targets)
    )
    inject_adapter_in_model(config, language_model)

"""GIT-LLM as a model of LAVIS."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

from lavis.common.registry import registry
from torch import Tensor, nn

from gitllm_plugin.config.model import GitLLMSettings
from gitllm_plugin.m3it.prompts import build_prompt
from gitllm_plugin.modeling import (
    GitLLM,
    TextEncoder,
    parameter_groups,
)
from gitllm_plugin.modeling.build import build_with_texts, enable_gradient_checkpointing
from gitllm_plugin.modeling.description import DESCRIPTION, LORA, read_description
from gitllm_plugin.modeling.lora import lora_merged
from gitllm_plugin.models.pairs import ReadsPairs
from gitllm_plugin.processors.of_folder import TEXT, VIS, FolderProcessors
from gitllm_plugin.resources import config_path

_TYPES = Path(config_path("models", "git_llm"))


@registry.register_model("git_llm")
class GitLLMForLavis(ReadsPairs):
    """Image encoder + projection + causal LLM, behind the methods that LAVIS's runners and tasks call.

    Args:
        model: the composition.
        text_encoder: prompts and answers to ids and labels.
        lr_scale: factor on the learning rate per module of the model.
        weight_decay: of each part's matrices.
        **settings: ``prompt``, ``rank_by`` and ``class_names`` of
            :class:`~gitllm_plugin.models.image_text.ImageTextModel`.
    """

    PRETRAINED_MODEL_CONFIG_DICT = {file.stem: str(file) for file in sorted(_TYPES.glob("*.yaml"))}
    Settings = GitLLMSettings

    model: GitLLM

    def __init__(
        self,
        model: GitLLM,
        text_encoder: TextEncoder,
        lr_scale: Mapping[str, float] | None = None,
        weight_decay: Mapping[str, float] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(model, text_encoder, **settings)
        self.lr_scale = dict(lr_scale or {})
        self.weight_decay = dict(weight_decay or {})

    @classmethod
    def from_config(cls, cfg: Mapping[str, Any]) -> GitLLMForLavis:
        """Build from the ``model`` node of a configuration, as LAVIS merges it.

        Raises:
            ConfigError: an unknown key, a name that cannot be loaded, or a checkpoint of another model.
        """
        settings: GitLLMSettings = cls.read_config(cfg)
        git_llm, text_encoder = build_with_texts(settings)
        folder = settings.folder
        kept = {} if folder is None else read_description(Path(folder).expanduser())["settings"]
        model = cls(
            git_llm,
            text_encoder,
            lr_scale=cast(Any, settings.lr_scale),
            weight_decay=cast(Any, settings.weight_decay),
            **{**cls.answer_settings(settings), "prompt": _prompt_of(settings, kept)},
        )
        model.load_finetuned(settings)
        if settings.load_finetuned:
            logging.info("Loaded %s.", settings.finetuned)
        return model

    @classmethod
    def default_config_path(cls, model_type: str) -> Any:
        """Find a type's file, or make what would stand in that of a model in a folder.

        Repairs: LAVIS's ``load_model`` and ``load_model_and_preprocess`` know no model but the types.

        Args:
            model_type: a type, or the path of a folder of ``gitllm export``.
        """
        if (Path(model_type).expanduser() / DESCRIPTION).is_file():
            return io.StringIO(json.dumps(config_of_folder(Path(model_type).expanduser())))  # JSON is YAML
        return super().default_config_path(model_type)

    def load_trainable_state_dict(self, state_dict: Mapping[str, Tensor], source: str = "the state dict") -> None:
        """Load what :meth:`trainable_state_dict` gave, which is all that its training changed.

        Raises:
            ConfigError: keys or shapes are not those of this model.
        """
        super().load_trainable_state_dict(state_dict, source)
        self.model.untrained.clear()

    def untrained(self) -> list[str]:
        """What was drawn at random and neither loaded nor trained since.

        LoRA alone is nothing: it begins as no change, so that the model is the one that was loaded.
        """
        return sorted(self.model.untrained) if "proj" in self.model.untrained else []

    def blocks(self) -> list[nn.Module]:
        """The decoder's layers, see :meth:`~gitllm_plugin.modeling.Decoder.blocks`."""
        return self.model.decoder.blocks()

    def use_checkpointing(self, on: bool) -> None:
        """See :class:`~gitllm_plugin.protocols.CheckpointedModel`."""
        enable_gradient_checkpointing(self.model, on)

    def check_image_size(self, height: int, width: int) -> None:
        """See :class:`~gitllm_plugin.protocols.SizedImagesModel`."""
        self.model.check_size(height, width)

    def inference(self) -> AbstractContextManager[None]:
        """A context in which LoRA is merged into the weights: evaluation is faster, the weights are back after it."""
        return lora_merged(self.model.language_model)

    def optimizer_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Groups of trained parameters; ``lr_scale`` is each part's factor on the run's learning rate.

        Args:
            weight_decay: of matrices in parts for which the model's own ``weight_decay`` gives none.
        """
        return parameter_groups(self.model, weight_decay, self.lr_scale, self.weight_decay)

    def _pixels(self, samples: Mapping[str, Any]) -> Tensor | None:
        """A batch of single images too has places in a model for several: the first one is always the first."""
        image = super()._pixels(samples)
        return image[:, None] if image is not None and image.ndim == 4 and self.model.max_images > 1 else image


def config_of_folder(folder: Path) -> dict[str, Any]:
    """Make the configuration of a model in a folder, as a file of ``configs/models`` has it."""
    own = FolderProcessors(folder)
    trainable = "proj+lora" if (folder / LORA).exists() else "proj"
    return {
        "model": {"arch": "git_llm", "folder": str(folder), "trainable": trainable},
        "preprocess": {
            kind: {
                phase: own.fill(kind, phase, {}, f"{name}_{phase}" if kind == VIS else name) or {"name": name}
                for phase in ("train", "eval")
            }
            for kind, name in ((VIS, "git_llm_image"), (TEXT, "git_llm_instruction"))
        },
    }


def _prompt_of(settings: GitLLMSettings, kept: Mapping[str, Any]) -> str:
    if settings.instruction is None:
        return settings.prompt
    template = (kept.get("text_processor") or {}).get("template") or "article"
    return build_prompt(template, settings.instruction, "")

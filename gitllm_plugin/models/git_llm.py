"""GIT-LLM as a model of LAVIS."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from lavis.common.registry import registry
from torch import Tensor, nn

from gitllm_plugin.config_keys import check_keys, missing_file, type_faults
from gitllm_plugin.modeling import (
    BuildSettings,
    GitLLM,
    LoraSettings,
    TextEncoder,
    build_from_folder,
    build_git_llm,
    find_chat_template,
    parameter_groups,
)
from gitllm_plugin.modeling.loading import DTYPES
from gitllm_plugin.modeling.lora import lora_merged
from gitllm_plugin.models.image_text import ImageTextModel
from gitllm_plugin.resources import config_path

BUILD_KEYS = frozenset(BuildSettings.__dataclass_fields__)
_KINDS = {
    **dict.fromkeys(("load_in_4bit", "untie", "gradient_checkpointing", "self_test", "chat_template"), bool),
    **dict.fromkeys(("language_model", "image_encoder", "folder", "dtype", "loss_on", "prompt"), str),
    **dict.fromkeys(("max_images", "vision_layer"), int),
    **dict.fromkeys(("lora", "lr_scale", "weight_decay"), dict),
}
_TYPES = Path(config_path("models", "git_llm"))


@registry.register_model("git_llm")
class GitLLMForLavis(ImageTextModel):
    """Image encoder + projection + causal LLM, behind the methods that LAVIS's runners and tasks call.

    Args:
        model: the composition.
        text_encoder: prompts and answers to ids and labels.
        lr_scale: factor on the learning rate per part of the model.
        weight_decay: of each part's matrices.
        **settings: ``prompt``, ``rank_by`` and ``class_names`` of :class:`ImageTextModel`.
    """

    PRETRAINED_MODEL_CONFIG_DICT = {file.stem: str(file) for file in sorted(_TYPES.glob("*.yaml"))}
    CONFIG_KEYS = ImageTextModel.CONFIG_KEYS | {
        "language_model",
        "image_encoder",
        "folder",
        *BUILD_KEYS,
        "chat_template",
        "loss_on",
        "lr_scale",
        "weight_decay",
    }

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
        cfg = cls.read_config(cfg)
        settings = {name: cfg[name] for name in BUILD_KEYS - {"lora"} if name in cfg}
        settings = BuildSettings(lora=_lora_settings(cfg.get("lora")), **settings)
        if cfg.get("folder"):
            git_llm, tokenizer = build_from_folder(cfg["folder"], settings)
        else:
            git_llm, tokenizer = build_git_llm(cfg["language_model"], cfg["image_encoder"], settings)
        model = cls(
            git_llm,
            TextEncoder(
                tokenizer,
                loss_on=cfg.get("loss_on", "answer"),
                chat_template=find_chat_template(tokenizer, git_llm.decoder.family)
                if cfg.get("chat_template")
                else None,
            ),
            lr_scale=cfg.get("lr_scale"),
            weight_decay=cfg.get("weight_decay"),
            **cls.answer_settings(cfg),
        )
        model.load_finetuned(cfg)
        return model

    @classmethod
    def config_faults(cls, cfg: Mapping[str, Any]) -> Iterable[str]:
        """What is wrong with the values of the ``model`` node, before anything is built."""
        yield from super().config_faults(cfg)
        yield from type_faults("model", cfg, _KINDS)
        dtypes = ("auto", *DTYPES)
        if isinstance(dtype := cfg.get("dtype"), str) and dtype not in dtypes:
            yield f"model.dtype is {dtype!r}; it may be one of {', '.join(dtypes)}"
        if (loss_on := cfg.get("loss_on")) not in (None, "answer", "all"):
            yield f"model.loss_on is {loss_on!r}; it may be one of answer, all"
        if isinstance(folder := cfg.get("folder"), str):
            yield from missing_file("model.folder", folder)
        if isinstance(lora := cfg.get("lora"), Mapping):
            yield from type_faults("model.lora", lora, {"rank": int, "alpha": int, "dropout": float})

    def blocks(self) -> list[nn.Module]:
        """The decoder's layers, see :meth:`~gitllm_plugin.modeling.Decoder.blocks`."""
        return self.model.decoder.blocks()

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


def _lora_settings(node: Mapping[str, Any] | None) -> LoraSettings | None:
    if node is None:
        return None
    check_keys("model.lora", node, LoraSettings.__dataclass_fields__)
    targets = node.get("targets")
    return LoraSettings(**{**node, "targets": tuple(targets) if targets else None})

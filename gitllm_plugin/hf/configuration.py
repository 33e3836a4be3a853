"""``config.json`` of an exported folder, as transformers reads it."""

from __future__ import annotations

from typing import Any

from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import AutoConfig

_SAYS_NOTHING = ("dtype", "transformers_version", "architectures")


class GitLLMConfig(PreTrainedConfig):
    """What a GIT-LLM is made of; to be read, since ``git_llm.json`` beside it decides what is built.

    Attributes:
        text_config: the language model's.
        vision_config: the image encoder's.
        projection, projection_factor: see :class:`~gitllm_plugin.modeling.projection.Projection`.
        attention: see :class:`~gitllm_plugin.modeling.decoder.Decoder`.
        vision_layer: of the encoder, counted from the end.
        max_images: most pictures of one text.
        tile_marks: whether tiles of a picture have marks of their row and column.
        end_tokens: ids with which the language model's own configurations end a text.
    """

    model_type = "git_llm"

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    projection: str = "linear_norm"
    projection_factor: int = 1
    attention: str = "git"
    vision_layer: int = -1
    max_images: int = 1
    tile_marks: bool = False
    end_tokens: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.text_config, self.vision_config = _config(self.text_config), _config(self.vision_config)
        super().__post_init__(**kwargs)

    def differs_from(self, other: GitLLMConfig) -> list[str]:
        """Name what is set otherwise here than there; a dtype is no part of the model."""
        mine, theirs = (_without(config.to_dict()) for config in (self, other))
        return sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key))


def _config(given: dict[str, Any] | PreTrainedConfig | None) -> PreTrainedConfig | None:
    return AutoConfig.for_model(**given) if isinstance(given, dict) else given


def _without(settings: dict[str, Any]) -> dict[str, Any]:
    """Leave out what does not belong to the model, in the parts' configurations too."""
    return {
        key: _without(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if key not in _SAYS_NOTHING and not str(key).startswith("_")
    }

"""Plain GIT as a model of LAVIS: microsoft/git-base and its fine-tunings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from lavis.common.registry import registry

from gitllm_plugin.config.model import GitSettings
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling import make_text_encoder
from gitllm_plugin.modeling.git import Git, load_git
from gitllm_plugin.models.image_text import ImageTextModel
from gitllm_plugin.resources import config_path

_TYPES = Path(config_path("models", "git"))


@registry.register_model("git")
class GitForLavis(ImageTextModel):
    """transformers' GIT, behind the methods that LAVIS's runners and tasks call.

    Captions follow [CLS]; answers follow [CLS] and the question, which no [SEP] closes.
    """

    PRETRAINED_MODEL_CONFIG_DICT = {file.stem: str(file) for file in sorted(_TYPES.glob("*.yaml"))}
    Settings = GitSettings

    @classmethod
    def from_config(cls, cfg: Mapping[str, Any]) -> GitForLavis:
        """Build from the ``model`` node of a configuration, as LAVIS merges it.

        Raises:
            ConfigError: an unknown key, weights that cannot be loaded, or a checkpoint of another model.
        """
        settings = cls.read_config(cfg)
        git, tokenizer = load_git(settings.weights)
        model = cls(git, make_text_encoder(git.causal_lm, tokenizer), **cls.answer_settings(settings))
        model.load_finetuned(settings)
        return model

    def _images(self, samples: Mapping[str, Any]) -> dict[str, Any]:
        images = super()._images(samples)
        if images["num_images"] is not None and images["num_images"].ndim == 3:
            raise ConfigError("plain GIT reads no pictures in tiles: leave max_tiles out of vis_processor")
        return images

    def check_image_size(self, height: int, width: int) -> None:
        """See :class:`~gitllm_plugin.protocols.SizedImagesModel`."""
        cast(Git, self.model).check_size(height, width)

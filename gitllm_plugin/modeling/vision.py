"""Image encoders: any of transformers' vision towers and timm's backbones, as grids of features."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from gitllm_plugin.errors import ConfigError

#: Hugging Face ``model_type`` -> class of the vision tower alone.
VISION_MODELS = {
    "clip": "CLIPVisionModel",
    "clip_vision_model": "CLIPVisionModel",
    "siglip": "SiglipVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    "timm_wrapper": "TimmWrapperModel",
}


def _vision_class(model_type: str) -> type[PreTrainedModel]:
    import transformers

    if model_type not in VISION_MODELS:
        raise ConfigError(
            f"image encoder of type {model_type!r} is not supported; supported: {', '.join(sorted(VISION_MODELS))}"
        )
    return getattr(transformers, VISION_MODELS[model_type])


class ImageEncoder(nn.Module):
    """A vision tower that answers with all its tokens: ``[n, 3, H, W] -> [n, P, vision_dim]``.

    The features are the last hidden state, CLS token included where there is one; of CLIP and SigLIP without
    the final norm (GIT-LLM trains its own LayerNorm behind the projection), of timm's backbones what
    ``forward_features`` gives. A grid is read row by row.

    Args:
        tower: the vision model.

    Attributes:
        vision_dim: width of the features.
        layer_norm_eps: epsilon for the projection's LayerNorm, the tower's own.
        image_size: the square size in pixels that the tower demands, or None where any size goes.
    """

    def __init__(self, tower: PreTrainedModel) -> None:
        super().__init__()
        self.tower = tower
        config = tower.config
        self.is_grid = config.model_type == "timm_wrapper"
        self.vision_dim: int = cast(Any, tower).timm_model.num_features if self.is_grid else config.hidden_size
        self.layer_norm_eps: float = getattr(config, "layer_norm_eps", 1e-5)
        self.image_size: int | None = None if self.is_grid else config.image_size
        if config.model_type == "siglip_vision_model":
            tower.get_submodule("post_layernorm")  # an error here means that transformers moved it
            tower.post_layernorm = nn.Identity()  # SigLIP normalises its last hidden state; CLIP does not
        if self.is_grid:
            cast(Any, tower).to(memory_format=torch.channels_last)

    @classmethod
    def from_config(cls, config: PreTrainedConfig) -> ImageEncoder:
        """A randomly initialised encoder."""
        model_class = _vision_class(config.model_type)
        return cls(model_class(_vision_part(config)))

    @classmethod
    def from_pretrained(cls, name: str, **kwargs: Any) -> ImageEncoder:
        """Load pretrained weights by hub name or from a local folder.

        Args:
            name: hub name or folder.
            **kwargs: go to ``from_pretrained`` (``dtype``, ``revision``, ...).

        Raises:
            ConfigError: a type of encoder that is not supported.
            OSError: the name is neither a folder nor a model that can be fetched.
        """
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(name)
        model_class = _vision_class(config.model_type)
        return cls(model_class.from_pretrained(name, config=_vision_part(config), **kwargs))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the tower's weights; pixels are cast to it."""
        return next(self.tower.parameters()).dtype

    @property
    def frozen(self) -> bool:
        """True when no parameter of the tower is trained."""
        return not any(parameter.requires_grad for parameter in self.tower.parameters())

    def train(self, mode: bool = True) -> ImageEncoder:
        """A frozen tower stays in evaluation mode: its batch statistics and dropout are part of the features."""
        return super().train(mode and not self.frozen)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Encode images.

        Args:
            pixel_values: float ``[n, 3, H, W]``, normalised as the encoder expects.

        Returns:
            Features ``[n, P, vision_dim]`` in the tower's dtype.

        Raises:
            ConfigError: the image size is not the one that the tower was trained for.
        """
        height, width = pixel_values.shape[-2:]
        if self.image_size is not None and (height, width) != (self.image_size, self.image_size):
            raise ConfigError(
                f"images of {height}x{width} pixels, but {self.tower.config.model_type} takes "
                f"{self.image_size}x{self.image_size}: set image_size: {self.image_size} in vis_processor"
            )
        pixel_values = pixel_values.to(self.dtype)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            if not self.is_grid:
                return self.tower(pixel_values=pixel_values).last_hidden_state
            grid = cast(Any, self.tower).timm_model.forward_features(
                pixel_values.contiguous(memory_format=torch.channels_last)
            )
            if grid.ndim == 4 and grid.shape[1] != self.vision_dim:
                grid = grid.permute(0, 3, 1, 2)  # Swin and its kin have channels last
            return grid.flatten(2).transpose(1, 2) if grid.ndim == 4 else grid


def _vision_part(config: PreTrainedConfig) -> PreTrainedConfig:
    return getattr(config, "vision_config", None) or config

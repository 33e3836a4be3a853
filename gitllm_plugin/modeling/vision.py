"""Image encoders: any of transformers' vision towers and timm's backbones, as grids of features."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling.contiguous import give_contiguous_input
from gitllm_plugin.modeling.pixels import are_features
from gitllm_plugin.modeling.pretrained import load_config, load_model


@dataclass(frozen=True)
class Tower:
    """Facts about one kind of vision tower.

    Attributes:
        model_class: its class in transformers, without any text tower.
        layers: dotted name of the list of its transformer layers.
        final_norm: dotted name of a norm behind them that its last hidden state passes; None where it passes none.
        fits_positions: whether it interpolates its positions for images of another size than its own, by itself.
    """

    model_class: str
    layers: str = "encoder.layers"
    final_norm: str | None = None
    fits_positions: bool = False


_GIT = Tower("GitVisionModel", "vision_model.encoder.layers", "vision_model.post_layernorm")
_SIGLIP = Tower("SiglipVisionModel", final_norm="post_layernorm")
_SIGLIP2 = Tower("Siglip2VisionModel", final_norm="post_layernorm")

#: Hugging Face ``model_type``, of the tower alone or of a model that has one -> facts.
TOWERS: dict[str, Tower] = {
    "clip": Tower("CLIPVisionModel"),
    "clip_vision_model": Tower("CLIPVisionModel"),
    "siglip": _SIGLIP,  # SigLIP 2 with a fixed image size too
    "siglip_vision_model": _SIGLIP,
    "siglip2": _SIGLIP2,  # SigLIP 2 NaFlex
    "siglip2_vision_model": _SIGLIP2,
    "dinov2": Tower("Dinov2Model", "encoder.layer", "layernorm", fits_positions=True),
    "dinov2_with_registers": Tower("Dinov2WithRegistersModel", "encoder.layer", "layernorm", fits_positions=True),
    "vit": Tower("ViTModel", "layers", "layernorm"),
    "git": _GIT,
    "git_vision_model": _GIT,
}
TIMM = "timm_wrapper"
_WHAT = "image encoder"

#: What stands behind the features (poolers, heads), is for images with holes, or only counts.
_UNREAD = re.compile(
    r"^(timm_model\.|vision_model\.)?(pooler|head|head_dist|fc|fc_norm|attn_pool|classifier|pre_logits)\."
    r"|(^|\.)(mask_token|num_batches_tracked)$"
)


def _facts(model_type: str) -> Tower:
    if model_type not in TOWERS:
        known = ", ".join(sorted([*TOWERS, TIMM]))
        raise ConfigError(f"image encoder of type {model_type!r} is not supported; supported: {known}")
    return TOWERS[model_type]


def _class_of(model_type: str) -> type[PreTrainedModel]:
    import transformers

    return getattr(transformers, "TimmWrapperModel" if model_type == TIMM else _facts(model_type).model_class)


class ImageEncoder(nn.Module):
    """A vision tower that answers with all its tokens: ``[n, 3, H, W] -> [n, P, vision_dim]``.

    The features are the last hidden state, CLS and register tokens included where there are any, without the
    final norm (GIT-LLM trains its own LayerNorm behind the projection) unless it is asked for; of timm's backbones what
    ``forward_features`` gives. A grid is read row by row.

    Args:
        tower: the vision model.
        layer: the hidden layer that is read, counted from the end: -1 is the last, -2 LLaVA's. Layers behind
            it are removed.
        final_norm: whether features pass the tower's final norm, where it has one.

    Attributes:
        vision_dim: width of the features.
        layer_norm_eps: epsilon for the projection's LayerNorm, the tower's own.
        image_size: the square size in pixels that the tower demands, or None where others go too, such as any whole
            number of patches.

    Raises:
        ConfigError: a kind of tower that is not supported, or a layer that it does not have.
    """

    def __init__(self, tower: PreTrainedModel, layer: int = -1, final_norm: bool = False) -> None:
        super().__init__()
        self.tower = tower
        self.layer = layer
        self._num_tokens: dict[tuple[int, int], int] = {}
        self._grids: dict[tuple[int, int], tuple[int, int]] = {}
        config = tower.config
        self.is_grid = config.model_type == TIMM
        self._passes_norm = final_norm and not self.is_grid and _facts(config.model_type).final_norm is not None
        self.patchifies = config.model_type == "siglip2_vision_model"
        self.vision_dim: int = cast(Any, tower).timm_model.num_features if self.is_grid else config.hidden_size
        self.layer_norm_eps: float = getattr(config, "layer_norm_eps", 1e-5)
        any_size = self.is_grid or self.patchifies or _facts(config.model_type).fits_positions
        self.image_size: int | None = None if any_size else config.image_size
        if self.is_grid:
            if layer != -1:
                raise ConfigError(f"vision_layer is {layer}, but backbones of timm give their last features only (-1)")
            # The layout in which convolutions are fast.
            cast(Any, tower).to(memory_format=torch.channels_last)
        else:
            _read_layer(tower, _facts(config.model_type), layer, final_norm)
        # ViT's pooler reads the first token, a slice; nobody reads the pooler, but its weights are in checkpoints.
        pooler = getattr(tower, "pooler", None)
        if isinstance(dense := getattr(pooler, "dense", None), nn.Linear):
            give_contiguous_input(dense)

    @classmethod
    def from_config(cls, config: PreTrainedConfig, layer: int = -1, final_norm: bool = False) -> ImageEncoder:
        """Make a randomly initialised encoder."""
        model_class = _class_of(config.model_type)
        return cls(model_class(_vision_config(config)), layer, final_norm)

    @classmethod
    def from_pretrained(cls, name: str, layer: int = -1, final_norm: bool = False, **kwargs: Any) -> ImageEncoder:
        """Load pretrained weights by hub name or from a local folder.

        Args:
            name: hub name or folder, of the tower alone or of a model that has one (CLIP, SigLIP, GIT).
            layer, final_norm: as for the class.
            **kwargs: go to ``from_pretrained`` (``dtype``, ...).

        Raises:
            ConfigError: the name is neither a folder nor a model that can be fetched, of a type that is not supported,
                or its weights are not all there, see :func:`~gitllm_plugin.modeling.pretrained.load_model`.
        """
        config = load_config(name, _WHAT)
        model_class = _class_of(config.model_type)
        if config.model_type == "git":
            # The tower stands two levels deep there.
            kwargs["key_mapping"] = {r"^git\.image_encoder\.": ""}
        is_unread = partial(_is_unread, model_type=config.model_type, final_norm=final_norm)
        tower = load_model(name, _WHAT, model_class, is_unread, config=_vision_config(config), **kwargs)
        return cls(tower, layer, final_norm)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the tower's weights; pixels are cast to it."""
        return next(self.tower.parameters()).dtype

    @property
    def frozen(self) -> bool:
        """True when no parameter of the tower is trained."""
        return not any(parameter.requires_grad for parameter in self.tower.parameters())

    def train(self, mode: bool = True) -> ImageEncoder:
        """Set the mode; a frozen tower stays in evaluation, and batch statistics, which no checkpoint has, do."""
        super().train(mode and not self.frozen)
        for module in self.modules():
            if hasattr(module, "running_mean"):
                module.eval()
        return self

    def num_tokens(self, height: int, width: int) -> int:
        """Count the tokens of an image of this size; the tower is asked once.

        Raises:
            ConfigError: the tower does not take images of this size.
        """
        size = (height, width)
        if size not in self._num_tokens:
            # Computed with zeros, because each kind of tower counts patches, CLS and registers in its own way.
            try:
                with torch.no_grad(), _in_evaluation(self.tower):
                    self._num_tokens[size] = self(self._zeros(height, width)).shape[1]
            except RuntimeError as error:  # torch's, of images too small for all the layers of a backbone
                raise self._wrong_size(height, width, f"gives no features of them ({error})") from error
        return self._num_tokens[size]

    def check_size(self, height: int, width: int) -> None:
        """Refuse images of a size that the tower does not take, or of which it would leave a part unread.

        Raises:
            ConfigError: naming both sizes.
        """
        if self.is_grid:
            self.num_tokens(height, width)
        else:
            self._check_patches(height, width)

    def _check_patches(self, height: int, width: int) -> None:
        patch = self.tower.config.patch_size
        if self.image_size is None and (height % patch or width % patch):
            raise self._wrong_size(height, width, f"takes multiples of its patch size {patch}")
        if self.image_size is not None and (height, width) != (self.image_size, self.image_size):
            own = f"{self.image_size}x{self.image_size}"
            raise self._wrong_size(height, width, f"takes {own}", f": set image_size: {self.image_size}")

    def _wrong_size(self, height: int, width: int, takes: str, advice: str = ": set another image_size") -> ConfigError:
        kind = getattr(self.tower.config, "architecture", None) or self.tower.config.model_type
        return ConfigError(f"images of {height}x{width} pixels, but {kind} {takes}{advice} in vis_processor")

    def fingerprint(self) -> str:
        """Say what tells this encoder's features from another's, in words that show what differs.

        Kind, layer, whether features passed a final norm, and hashes of the settings and of the weights rounded to
        bfloat16. Weights kept in float32 and in bfloat16 have the same fingerprint; float16 rounds them otherwise.
        """
        config = self.tower.config
        # What every configuration has tells no encoders apart: paths, versions, the dtype, names of classes.
        says_nothing = PreTrainedConfig().to_dict()
        settings = {name: value for name, value in config.to_dict().items() if name not in says_nothing}
        weights = hashlib.sha256()
        for name, weight in sorted(self.tower.state_dict().items()):
            weights.update(name.encode())
            # bfloat16, so that an encoder loaded in float32 and one in bfloat16 have one fingerprint.
            rounded = weight.to(torch.bfloat16).cpu().contiguous().reshape(-1)  # a scalar has no bytes to view
            weights.update(rounded.view(torch.uint8).numpy().data)
        settings_hash = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        norm = ", behind its final norm" if self._passes_norm else ""
        hashes = f"settings {settings_hash[:8]}, weights {weights.hexdigest()[:16]}"
        return f"{config.model_type}, layer {self.layer}{norm}, {hashes}"

    def check_frozen(self) -> None:
        """Refuse to take features in the place of images where the tower is trained.

        Raises:
            ConfigError: it is.
        """
        if not self.frozen:
            raise ConfigError(
                "the data brings features of images that were computed before, but the image encoder is trained: "
                "leave vit out of model.trainable, or datasets.m3it_wds.build_info.features"
            )

    def _given(self, features: Tensor) -> Tensor:
        self.check_frozen()
        if features.shape[-1] != self.vision_dim:
            raise ConfigError(f"features are {features.shape[-1]} wide, but this image encoder's are {self.vision_dim}")
        return features.to(self.dtype)

    def _zeros(self, height: int, width: int) -> Tensor:
        return next(self.tower.parameters()).new_zeros(1, 3, height, width)

    def grid_shape(self, height: int, width: int) -> tuple[int, int]:
        """Count rows and columns of patches of an image of this size.

        Patches are the last ``rows * columns`` of an image's tokens, row by row; what stands in front of them
        (CLS, registers) shows nothing of the image.
        """
        if not self.is_grid:
            patch = self.tower.config.patch_size
            return height // patch, width // patch
        if (height, width) not in self._grids:
            with torch.no_grad(), _in_evaluation(self.tower):
                features = _timm_features(self.tower, self._zeros(height, width), self.vision_dim)
            if features.ndim == 4:
                self._grids[height, width] = features.shape[2], features.shape[3]
            else:
                patches = cast(Any, self.tower).timm_model.patch_embed
                self._grids[height, width] = patches.dynamic_feat_size((height, width))
        return self._grids[height, width]

    def grid_of(self, pixel_values: Tensor) -> tuple[int, int]:
        """Count rows and columns of patches of images ``[..., 3, H, W]``, or of features of square ones.

        Raises:
            ConfigError: features of images that are not square.
        """
        height, width = pixel_values.shape[-2:]
        if not are_features(pixel_values):
            return self.grid_shape(height, width)
        patches = height - self._num_in_front()
        side = math.isqrt(max(patches, 0))
        if side**2 != patches:
            raise ConfigError(
                f"features of {height} tokens are not those of a square image of this encoder: encode square "
                "images, or take images in their place"
            )
        return side, side

    def _num_in_front(self) -> int:
        """Count an image's tokens that are no patches: CLS, registers."""
        if self.is_grid:
            return getattr(cast(Any, self.tower).timm_model, "num_prefix_tokens", 0)
        side = self.image_size or 4 * self.tower.config.patch_size
        rows, columns = self.grid_shape(side, side)
        return self.num_tokens(side, side) - rows * columns

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Encode images.

        Args:
            pixel_values: float ``[n, 3, H, W]``, normalised as the encoder expects; or ``[n, 1, P, vision_dim]``,
                features that this encoder gave before, see :mod:`~gitllm_plugin.modeling.pixels`.

        Returns:
            Features ``[n, P, vision_dim]`` in the tower's dtype.

        Raises:
            ConfigError: the tower does not take images of this size, or features are of another width, or were
                computed before although the encoder is trained.
        """
        if are_features(pixel_values):
            return self._given(pixel_values[:, 0])
        height, width = pixel_values.shape[-2:]
        if not self.is_grid:
            self._check_patches(height, width)
        pixel_values = pixel_values.to(self.dtype)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            if self.is_grid:
                try:
                    features = _timm_features(self.tower, pixel_values, self.vision_dim)
                except AssertionError as error:  # timm's, of a size that is not the model's
                    raise self._wrong_size(height, width, f"does not take them ({error})") from error
                return features.flatten(2).transpose(1, 2) if features.ndim == 4 else features
            inputs = _patchify(pixel_values, self.tower.config.patch_size) if self.patchifies else {}
            return self.tower(**{"pixel_values": pixel_values, **inputs}).last_hidden_state


@contextmanager
def _in_evaluation(module: nn.Module) -> Iterator[None]:
    """Compute something that training must not show: neither statistics nor random numbers move."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _is_unread(name: str, model_type: str, final_norm: bool) -> bool:
    """Tell whether a weight does nothing to the features: of a pooler, a head or the final norm behind them."""
    norm = None if model_type == TIMM or final_norm else _facts(model_type).final_norm
    return _UNREAD.search(name) is not None or (norm is not None and name.startswith(f"{norm}."))


def _read_layer(tower: PreTrainedModel, facts: Tower, layer: int, final_norm: bool) -> None:
    """Let the tower's last hidden state be that of ``layer``, in place; behind it stands at most the norm."""
    if facts.final_norm is not None and not final_norm:
        # An error here means that transformers moved the norm, and that features would pass it.
        tower.get_submodule(facts.final_norm)
        tower.set_submodule(facts.final_norm, nn.Identity())
    layers = cast(nn.ModuleList, tower.get_submodule(facts.layers))
    if not -len(layers) <= layer <= -1:
        raise ConfigError(
            f"vision_layer is {layer}, but {tower.config.model_type} has {len(layers)} layers: "
            f"-1 (the last) to {-len(layers)}"
        )
    if layer == -1:
        return
    # Removed and not only skipped: they would cost memory, and be saved with the model.
    del layers[len(layers) + layer + 1 :]
    config: Any = tower.config
    config.num_hidden_layers = len(layers)
    # DINOv2 names its layers, to be a backbone of other models.
    if hasattr(config, "stage_names"):
        config.stage_names = config.stage_names[: len(layers) + 1]
        config.out_features = config.stage_names[-1:]


def _timm_features(tower: Any, pixel_values: Tensor, channels: int) -> Tensor:
    """Compute a map ``[n, channels, rows, columns]`` or, of transformers, tokens ``[n, P, channels]``."""
    features = tower.timm_model.forward_features(pixel_values.contiguous(memory_format=torch.channels_last))
    if features.ndim == 4 and features.shape[1] != channels:
        # Swin and its kin have channels last.
        return features.permute(0, 3, 1, 2)
    return features


def _patchify(pixel_values: Tensor, size: int) -> dict[str, Tensor]:
    """Make the arguments of SigLIP 2 NaFlex, which takes patches, of whole images ``[n, 3, H, W]``, row by row."""
    count, _, height, width = pixel_values.shape
    rows, columns = height // size, width // size
    patches = pixel_values.unflatten(3, (columns, size)).unflatten(2, (rows, size)).permute(0, 2, 4, 3, 5, 1)
    device = pixel_values.device
    return {
        "pixel_values": patches.reshape(count, rows * columns, -1),
        "pixel_attention_mask": torch.ones(count, rows * columns, dtype=torch.long, device=device),
        "spatial_shapes": torch.tensor([[rows, columns]] * count, device=device),
    }


def _vision_config(config: PreTrainedConfig) -> PreTrainedConfig:
    return getattr(config, "vision_config", None) or config

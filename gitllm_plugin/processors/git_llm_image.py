"""Image processors for LAVIS."""

from collections.abc import Mapping
from typing import Any

from lavis.common.registry import registry
from lavis.processors.base_processor import BaseProcessor
from PIL import Image
from torch import Tensor

from gitllm_plugin.config_keys import check_keys
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.processors.image_transform import NORMALIZATIONS, RESIZE_MODES, ImageTransform

_TRANSFORM_KEYS = frozenset({"image_size", "normalization", "mean", "std", "resize"})


@registry.register_processor("git_llm_image_eval")
class GitLLMImageEvalProcessor(BaseProcessor):
    """Makes pixel values of a PIL image, always the same ones.

    Args:
        transform: what to do with an image.
    """

    CONFIG_KEYS = _TRANSFORM_KEYS

    def __init__(self, transform: ImageTransform):
        super().__init__()
        self.transform = transform

    def __call__(self, item: Image.Image) -> Tensor:
        """Makes pixel values: float32 [3, image_size, image_size].

        Raises:
            TypeError: if the item is not a PIL image.
        """
        if not isinstance(item, Image.Image):
            raise TypeError(
                f"{type(self).__name__} takes a PIL image, got {type(item).__name__}; "
                "open files with PIL.Image.open, arrays with PIL.Image.fromarray"
            )
        return self.transform(item)

    @classmethod
    def from_config(cls, cfg: Mapping[str, Any] | None = None) -> "GitLLMImageEvalProcessor":
        """Builds the processor.

        Args:
            cfg: None or a mapping with any of ``image_size`` (pixels, 224), ``normalization`` (a name of
                NORMALIZATIONS, ``clip``) or else ``mean`` and ``std`` (three numbers each, white is 1), and
                ``resize`` (``squash`` or ``shortest_edge``).

        Raises:
            ConfigError: if a key or value is not one of these.
        """
        return cls(_read_transform(cls, cfg or {}))


@registry.register_processor("git_llm_image_train")
class GitLLMImageTrainProcessor(GitLLMImageEvalProcessor):
    """As in evaluation, plus ``random_resized_crop: [least, greatest]``, the part of the area to cut out."""

    CONFIG_KEYS = _TRANSFORM_KEYS | {"random_resized_crop"}


def _read_transform(processor: type, cfg: Mapping[str, Any]) -> ImageTransform:
    check_keys(processor.__name__, cfg, processor.CONFIG_KEYS | {"name"})
    size, resize = cfg.get("image_size", 224), cfg.get("resize", "squash")
    if not isinstance(size, int) or size < 1:
        raise ConfigError(f"image_size is {size!r}, expected a number of pixels such as 224")
    if resize not in RESIZE_MODES:
        raise ConfigError(f"resize is {resize!r}, expected one of {', '.join(RESIZE_MODES)}")
    mean, std = _read_normalization(cfg)
    return ImageTransform(size, mean, std, resize, _read_crop_scale(cfg))


def _read_normalization(cfg: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if "mean" not in cfg and "std" not in cfg:
        name = cfg.get("normalization", "clip")
        if name not in NORMALIZATIONS:
            raise ConfigError(f"normalization is {name!r}, expected one of {', '.join(NORMALIZATIONS)}")
        return NORMALIZATIONS[name]
    if "normalization" in cfg:
        raise ConfigError("normalization is given together with mean or std; give either its name or both numbers")
    mean, std = (tuple(cfg.get(key) or ()) for key in ("mean", "std"))
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ConfigError(
            f"mean is {list(mean)} and std is {list(std)}, expected three numbers each, std above 0 (white is 1)"
        )
    return mean, std


def _read_crop_scale(cfg: Mapping[str, Any]) -> tuple[float, float] | None:
    scale = cfg.get("random_resized_crop")
    if scale is None:
        return None
    if isinstance(scale, (str, float, int)) or len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise ConfigError(
            f"random_resized_crop is {scale!r}, expected the least and greatest part of the area, such as [0.5, 1.0]"
        )
    if cfg.get("resize", "squash") != "squash":
        raise ConfigError("random_resized_crop squashes what it cuts out; remove resize or random_resized_crop")
    return float(scale[0]), float(scale[1])

"""What an image processor does, read from its configuration or from the image encoder's own."""

from collections.abc import Mapping
from typing import Any

from PIL import Image

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.processors.image_transform import NORMALIZATIONS, RESAMPLINGS, ImageTransform
from gitllm_plugin.processors.settings import PictureSettings


def make_transform(settings: PictureSettings) -> ImageTransform:
    """Make the transform that a processor's settings describe, from what they say or their encoder's own processor.

    Raises:
        ConfigError: the encoder that they name cannot be read.
    """
    given = read_encoder(settings.encoder) if settings.encoder else {}
    size = settings.image_size or given.get("image_size", 224)
    resize = settings.resize or given.get("resize", "squash")
    own_size = size == given.get("image_size") and resize == given.get("resize")
    if settings.mean is not None and settings.std is not None:
        mean, std = settings.mean, settings.std
    elif settings.normalization is not None:
        mean, std = NORMALIZATIONS[settings.normalization]
    else:
        mean, std = given.get("normalization", NORMALIZATIONS["clip"])
    return ImageTransform(
        size,
        mean,
        std,
        resize=resize,
        # What an encoder cuts away at its own size says nothing of another size.
        shortest_edge=given.get("shortest_edge") if own_size else None,
        resampling=settings.resampling or given.get("resampling", "bicubic"),
        crop_scale=getattr(settings, "random_resized_crop", None),
        horizontal_flip=getattr(settings, "horizontal_flip", False),
    )


def read_encoder(name: str) -> dict[str, Any]:
    """Find what an encoder's image processor does, as arguments of :class:`ImageTransform`.

    Args:
        name: hub name, or a folder with ``preprocessor_config.json`` (of timm's models: ``config.json``).

    Returns:
        ``image_size``, ``normalization`` (mean and std), ``resize``, ``shortest_edge`` and ``resampling``.

    Raises:
        ConfigError: there is none, or it does what :class:`ImageTransform` cannot.
    """
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"encoder: {name} has no image processor that can be read: {error}") from error
    timm = getattr(processor, "data_config", None)
    return _read_timm(name, timm) if timm else _read_transformers(name, processor.to_dict())


def _read_transformers(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    size, crop = config.get("size") or {}, config.get("crop_size") or {}
    normalization = (tuple(config.get("image_mean") or ()), tuple(config.get("image_std") or ()))
    resampling = Image.Resampling(config.get("resample", Image.Resampling.BICUBIC)).name.lower()
    if config.get("do_center_crop"):
        side, edge, resize = crop.get("height"), size.get("shortest_edge"), "shortest_edge"
        square = side == crop.get("width") and edge is not None and edge >= side
    else:
        side, edge, resize = size.get("height"), None, "squash"
        square = side is not None and side == size.get("width")
    if not square or len(normalization[0]) != 3 or resampling not in RESAMPLINGS:
        raise ConfigError(
            f"encoder: the image processor of {name} does something else than resizing to one square size; "
            f"give image_size, mean, std and resize yourself. It says {dict(config)}"
        )
    return _as_arguments(side, normalization, resize, edge, resampling)


def _read_timm(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    _, height, width = config["input_size"]
    mode, part = config.get("crop_mode", "center"), config.get("crop_pct") or 1.0
    if height != width or config["interpolation"] not in RESAMPLINGS or (mode != "center" and part != 1.0):
        raise ConfigError(
            f"encoder: {name} wants images prepared in another way than image processors here know; give image_size, "
            f"mean, std and resize yourself. It says {dict(config)}"
        )
    resize = "shortest_edge" if mode == "center" else "squash"
    normalization = (tuple(config["mean"]), tuple(config["std"]))
    return _as_arguments(height, normalization, resize, int(height / part), config["interpolation"])


def _as_arguments(image_size, normalization, resize, shortest_edge, resampling) -> dict[str, Any]:
    return {
        "image_size": image_size,
        "normalization": normalization,
        "resize": resize,
        "shortest_edge": shortest_edge,
        "resampling": resampling,
    }

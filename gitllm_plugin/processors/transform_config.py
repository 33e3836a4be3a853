"""What an image processor does, read from its configuration or from the image encoder's own."""

from collections.abc import Mapping
from typing import Any

from PIL import Image

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.processors.image_transform import NORMALIZATIONS, RESAMPLINGS, RESIZE_MODES, ImageTransform

TRANSFORM_KEYS = frozenset({"encoder", "image_size", "normalization", "mean", "std", "resize", "resampling"})
RANDOM_KEYS = frozenset({"random_resized_crop", "horizontal_flip"})


def read_transform(where: str, cfg: Mapping[str, Any]) -> ImageTransform:
    """The transform that TRANSFORM_KEYS and RANDOM_KEYS describe, all of them optional.

    Args:
        where: whose configuration it is, for messages.
        cfg: any of ``encoder`` (hub name or folder: what its image processor does is the default of the other
            keys), ``image_size`` (pixels, 224), ``normalization`` (a name of NORMALIZATIONS, ``clip``) or else
            ``mean`` and ``std`` (three numbers each, white is 1), ``resize`` (``squash`` or ``shortest_edge``),
            ``resampling`` (``bicubic``, ``bilinear``, ``lanczos``), ``random_resized_crop`` (least and greatest
            part of the area), ``horizontal_flip`` (true or false).

    Raises:
        ConfigError: if a value is not one of these, or the encoder cannot be read.
    """
    given = read_encoder(cfg["encoder"]) if cfg.get("encoder") else {}
    size = cfg.get("image_size", given.get("image_size", 224))
    if not isinstance(size, int) or size < 1:
        raise ConfigError(f"image_size is {size!r}, expected a number of pixels such as 224")
    resize = _choose(cfg, "resize", given.get("resize", "squash"), RESIZE_MODES)
    flip = cfg.get("horizontal_flip", False)
    if not isinstance(flip, bool):
        raise ConfigError(f"{where}: horizontal_flip is {flip!r}, expected true or false")
    own_size = size == given.get("image_size") and resize == given.get("resize")
    return ImageTransform(
        size,
        *_read_normalization(cfg, given.get("normalization", NORMALIZATIONS["clip"])),
        resize=resize,
        shortest_edge=given.get("shortest_edge") if own_size else None,
        resampling=_choose(cfg, "resampling", given.get("resampling", "bicubic"), RESAMPLINGS),
        crop_scale=_read_crop_scale(cfg),
        horizontal_flip=flip,
    )


def read_encoder(name: str) -> dict[str, Any]:
    """What an encoder's image processor does, as arguments of :class:`ImageTransform`.

    Args:
        name: hub name, or a folder with ``preprocessor_config.json`` (of timm's models: ``config.json``).

    Returns:
        ``image_size``, ``normalization`` (mean and std), ``resize``, ``shortest_edge`` and ``resampling``.

    Raises:
        ConfigError: there is none, or it does what :class:`ImageTransform` cannot.
    """
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(name)
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


def _choose(cfg: Mapping[str, Any], key: str, default: str, known: tuple[str, ...]) -> str:
    value = cfg.get(key, default)
    if value not in known:
        raise ConfigError(f"{key} is {value!r}, expected one of {', '.join(known)}")
    return value


def _read_normalization(
    cfg: Mapping[str, Any], default: tuple[tuple[float, ...], tuple[float, ...]]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if "mean" not in cfg and "std" not in cfg:
        if "normalization" not in cfg:
            return default
        name = cfg["normalization"]
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

"""What an image processor does, read from its configuration or from the image encoder's own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gitllm_plugin.config import read
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.processors.image_transform import NORMALIZATIONS, RESAMPLINGS, ROUND_CENTRE, ImageTransform
from gitllm_plugin.processors.settings import PictureSettings

_CONVNEXT_SQUASHES_FROM = 384
_MOST_LEVELS_OFF = 3.0
"""Of a probe's pixels, in grey levels: Pillow, which some processors resize with, rounds twice."""


def make_transform(settings: PictureSettings) -> ImageTransform:
    """Make the transform that a processor's settings describe, from what they say or their encoder's own processor.

    Raises:
        ConfigError: the encoder that they name cannot be read.
    """
    given = read_encoder(settings.encoder) if settings.encoder else {}
    size = settings.image_size or given.get("image_size", 224)
    # Of a picture in tiles nothing is cut away.
    resize = "squash" if settings.max_tiles > 1 else settings.resize or given.get("resize", "squash")
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
        round_centre=given.get("round_centre", False),
        max_tiles=settings.max_tiles,
        thumbnail=settings.thumbnail,
    )


def transform_of_folder(encoder: Path, settings: Mapping[str, Any]) -> ImageTransform:
    """Make the transform of an exported folder.

    Args:
        encoder: its ``image_encoder``, which has the image processor.
        settings: what the folder keeps of the run; of its ``vis_processor`` into how many tiles pictures are cut.

    Raises:
        ConfigError: see :func:`read_encoder`.
    """
    pictures = settings.get("vis_processor") or {}
    said = {key: pictures[key] for key in ("max_tiles", "thumbnail") if key in pictures}
    return make_transform(read(PictureSettings, "vis_processor", {"encoder": str(encoder), **said}))


def transform_of_encoder(name: str) -> ImageTransform:
    """Make the transform that an encoder's own image processor describes.

    Raises:
        ConfigError: see :func:`read_encoder`.
    """
    arguments = read_encoder(name)
    mean, std = arguments.pop("normalization")
    return ImageTransform(mean=mean, std=std, **arguments)


def read_encoder(name: str) -> dict[str, Any]:
    """Find what an encoder's image processor does, as arguments of :class:`ImageTransform`.

    It is followed in all that it says, which is tried: pictures are given to both, and have to give the same pixels.

    Args:
        name: hub name, or a folder with ``preprocessor_config.json`` (of timm's models: ``config.json``).

    Returns:
        ``image_size``, ``normalization`` (mean and std), ``resize``, ``shortest_edge``, ``resampling`` and
        ``round_centre``.

    Raises:
        ConfigError: there is none, or it does what :class:`ImageTransform` cannot; the message says what.
    """
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise ConfigError(f"encoder: {name} has no image processor that can be read: {error}") from error
    timm = getattr(processor, "data_config", None)
    config = timm or processor.to_dict()
    try:
        arguments = _read_timm(timm) if timm else _read_transformers(config)
        _try_out(processor, arguments)
    except _NotFollowed as error:
        raise ConfigError(
            f"encoder: the image processor of {name} does something else than resizing to one square size and "
            f"normalising: {error}. Leave encoder out of vis_processor and give image_size, mean, std and resize "
            f"yourself. It says {dict(config)}"
        ) from error
    return arguments


class _NotFollowed(Exception):
    """An image processor does what :class:`ImageTransform` cannot; the text says what."""


def _read_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    if config.get("do_resize") is False:
        raise _NotFollowed("do_resize is false, so every picture would keep its own size")
    resampling = Image.Resampling(config.get("resample", Image.Resampling.BICUBIC)).name.lower()
    side, edge, resize = _size_of(config)
    return _as_arguments(
        side, _normalization_of(config), resize, edge, resampling, round_centre=config.get(ROUND_CENTRE) is True
    )


def _size_of(config: Mapping[str, Any]) -> tuple[int, int | None, str]:
    """Find the square's side, the shorter side before it is cut out, and ``resize``."""
    size, crop = dict(config.get("size") or {}), dict(config.get("crop_size") or {})
    keys = {key for key, value in size.items() if value is not None}
    if keys == {"shortest_edge"}:
        edge = int(size["shortest_edge"])
        # ConvNeXt's way, which says the size of the result.
        if config.get("crop_pct") is not None:
            squashes = edge >= _CONVNEXT_SQUASHES_FROM
            return (edge, None, "squash") if squashes else (edge, int(edge / config["crop_pct"]), "shortest_edge")
        if not config.get("do_center_crop"):
            raise _NotFollowed(f"size is {size} and nothing is cut out, so pictures would keep their proportions")
        side = crop.get("height")
        if side is None or side != crop.get("width"):
            raise _NotFollowed(f"crop_size is {crop}, which is no square")
        if edge < side:
            raise _NotFollowed(f"crop_size is {crop}, larger than the picture of size {size}, which would be padded")
        return int(side), edge, "shortest_edge"
    if keys != {"height", "width"} or size["height"] != size["width"]:
        raise _NotFollowed(f"size is {size}, which is no square and no shortest edge")
    side = int(size["height"])
    if config.get("do_center_crop") and {crop.get("height"), crop.get("width")} != {side}:
        raise _NotFollowed(f"size is {size}, out of which crop_size {crop} is cut")
    return side, None, "squash"


def _normalization_of(config: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Find mean and std where white is 1, rescaling by another factor, or none of the two, included."""
    mean, std = (0.0,) * 3, (1.0,) * 3
    if config.get("do_normalize"):
        mean, std = (_three(config.get(key), key) for key in ("image_mean", "image_std"))
    white = 255 * float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale") else 255.0
    if min(std) <= 0 or white <= 0:
        raise _NotFollowed(f"image_std is {list(std)} and rescale_factor {config.get('rescale_factor')}: not above 0")
    if abs(white - 1) < 1e-9:
        return mean, std
    return tuple(value / white for value in mean), tuple(value / white for value in std)


def _three(value: Any, key: str) -> tuple[float, ...]:
    numbers = tuple(value) if isinstance(value, (list, tuple)) else (value,) * 3
    if len(numbers) != 3 or not all(isinstance(number, (int, float)) for number in numbers):
        raise _NotFollowed(f"{key} is {value}, not three numbers")
    return tuple(float(number) for number in numbers)


def _read_timm(config: Mapping[str, Any]) -> dict[str, Any]:
    _, height, width = config["input_size"]
    mode, part = config.get("crop_mode", "center"), config.get("crop_pct") or 1.0
    if height != width:
        raise _NotFollowed(f"input_size is {list(config['input_size'])}, which is no square")
    if mode != "center" and part != 1.0:
        raise _NotFollowed(f"crop_mode is {mode} with a crop_pct of {part}")
    resize = "shortest_edge" if mode == "center" else "squash"
    normalization = (_three(config["mean"], "mean"), _three(config["std"], "std"))
    return _as_arguments(
        height, normalization, resize, int(height / part), config["interpolation"], round_centre=mode == "center"
    )


def _as_arguments(image_size, normalization, resize, shortest_edge, resampling, *, round_centre) -> dict[str, Any]:
    if resampling not in RESAMPLINGS:
        raise _NotFollowed(f"it resizes {resampling}, which is none of {', '.join(RESAMPLINGS)}")
    return {
        "image_size": image_size,
        "normalization": normalization,
        "resize": resize,
        "shortest_edge": shortest_edge,
        "resampling": resampling,
        "round_centre": round_centre,
    }


def _try_out(processor: Any, arguments: Mapping[str, Any]) -> None:
    """Give two pictures, a wide large one and a tall small one, to the processor and to the transform.

    What a processor does is not all in the keys that are read here, and new keys come.

    Raises:
        _NotFollowed: it fails, or gives other pixels.
    """
    mean, std = arguments["normalization"]
    # Who knows the key that says where the centre is, is this package; the processor does as transformers does.
    round_centre = arguments["round_centre"] and hasattr(processor, "data_config")
    transform = ImageTransform(mean=mean, std=std, **{**_without(arguments), "round_centre": round_centre})
    side = transform.image_size
    for height, width in ((side + side // 2 + 3, 2 * side + 6), (side // 2 + 3, side // 3 + 2)):
        picture = _waves(height, width)
        try:
            wanted = processor(Image.fromarray(picture), return_tensors="pt")["pixel_values"][0].float()
        except Exception as error:  # whatever a processor of any kind makes of its settings
            raise _NotFollowed(f"it fails on a picture of {width} x {height} ({error!r})") from error
        pixels = transform.normalize(transform.fit(picture))
        if wanted.shape != pixels.shape:
            raise _NotFollowed(f"it makes {list(wanted.shape)} of a picture of {width} x {height}")
        levels = ((wanted - pixels).abs().amax((1, 2)) * pixels.new_tensor(std) * 255).max()
        if not levels <= _MOST_LEVELS_OFF:
            raise _NotFollowed(f"of a picture of {width} x {height} it makes other pixels, by {levels:.0f} grey levels")


def _waves(height: int, width: int) -> np.ndarray:
    """Draw smooth waves, on which resizing in another order hardly shows, and an offset of one pixel does."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 3 + y / 7), np.sin(x / 5 - y / 4), np.cos(x / 6 + y / 3)]
    return np.stack([127.5 + 120 * wave for wave in waves], axis=-1).astype(np.uint8)


def _without(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in arguments.items() if key != "normalization"}

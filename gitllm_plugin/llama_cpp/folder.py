"""A folder of ``gitllm export --to llama.cpp``: its files, what its description says, and pixels by it."""

from __future__ import annotations

import json
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gitllm_plugin.common.checksums import check_files, sum_of_file
from gitllm_plugin.errors import ConfigError

DESCRIPTION, WEIGHTS, ENCODER = "llama_cpp.json", "language_model.gguf", "image_encoder.onnx"
FORMAT = 2
_MAX_NEW_TOKENS = 30
_TO_WRITE = ("gguf", "onnx", "onnxscript", "onnxruntime", "xllamacpp")
_SAID = ("image", "prompt", "ends", "context", "image_tokens", "max_images", "weights", "model", "checksums")


def read_description(folder: Path) -> dict[str, Any]:
    """Read what the folder says of itself, and compare its files with it: llama.cpp trusts a file that is damaged.

    Raises:
        ConfigError: it is no such folder, a part is missing or damaged, or it is of another version.
    """
    try:
        about = json.loads((folder / DESCRIPTION).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} is no folder of `gitllm export --to llama.cpp` ({error})") from error
    missing = [name for name in (WEIGHTS, ENCODER) if not (folder / name).is_file()]
    if missing:
        raise ConfigError(f"{folder} has no {' and no '.join(missing)}: copy it again, whole")
    if not isinstance(about, dict) or about.get("format") != FORMAT or not set(_SAID) <= set(about):
        raise ConfigError(f"{folder / DESCRIPTION} is of another version of this package, or damaged: export again")
    sums = about["checksums"]
    damaged = not isinstance(sums, dict) or not set(sums) <= {WEIGHTS, ENCODER, DESCRIPTION}
    if damaged or sums.get(DESCRIPTION, _sum_of(about)) != _sum_of(about):
        raise ConfigError(
            f"{folder / DESCRIPTION} has not what was written into it: copy the folder again. If you changed it "
            f"yourself, take the line {DESCRIPTION!r} out of its 'checksums'"
        )
    check_files(folder, {name: sums[name] for name in (WEIGHTS, ENCODER) if name in sums}, folder / DESCRIPTION)
    return about


def write_description(folder: Path, about: dict[str, Any]) -> None:
    """Write what the folder says of itself, with sums of itself and of the other files, which are there."""
    sums = {name: sum_of_file(folder / name) for name in (WEIGHTS, ENCODER)}
    content = {"format": FORMAT, **about, "checksums": {**sums, DESCRIPTION: _sum_of(about)}}
    (folder / DESCRIPTION).write_text(json.dumps(content, indent=2) + "\n")


def _sum_of(about: dict[str, Any]) -> str:
    settings = {name: value for name, value in about.items() if name not in ("format", "checksums")}
    return f"{zlib.crc32(json.dumps(settings, sort_keys=True).encode()):08x}"


def check_packages() -> None:
    """Refuse to begin without the packages that writing needs.

    Raises:
        ConfigError: naming them.
    """
    missing = [name for name in _TO_WRITE if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} not installed; writing for llama.cpp needs: pip install {' '.join(_TO_WRITE)}"
        )


def greedy_tokens(decoding: Any) -> int:
    """Give the most tokens of an answer, by a ``Decoding`` that searches greedily, or None.

    Raises:
        ConfigError: it asks for beams, sampling, a penalty, or no token.
    """
    if decoding is None:
        return _MAX_NEW_TOKENS
    if decoding.num_beams != 1 or decoding.temperature != 0 or decoding.repetition_penalty != 1:
        raise ConfigError(
            "llama.cpp answers greedily here: leave beams, temperature and repetition penalty as they are"
        )
    if decoding.max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens is {decoding.max_new_tokens}; at least 1")
    return decoding.max_new_tokens


def fit(
    picture: np.ndarray,
    image_size: int,
    shortest_edge: int | None,
    resampling: str,
    round_centre: bool,
    mean: list[float],
    std: list[float],
) -> np.ndarray:
    """Resize and normalise a picture as ``ImageTransform`` does, within one grey level.

    Args:
        picture: uint8 ``[H, W, 3]``.
        image_size, resampling, round_centre, mean, std: see ``ImageTransform``.
        shortest_edge: the shorter side in front of cutting out the centre; None: the whole picture is squashed.

    Returns:
        float32 ``[3, image_size, image_size]``.
    """
    size, image = (image_size, image_size), Image.fromarray(picture)
    box: tuple[float, ...] = (0, 0, *image.size)
    if shortest_edge is not None:
        whole = [int(shortest_edge * side / min(image.size)) for side in image.size]
        cut = [round((side - image_size) / 2) if round_centre else (side - image_size) // 2 for side in whole]
        scale = [own / side for own, side in zip(image.size, whole, strict=True)]
        box = tuple((c + d) * s for d in (0, image_size) for c, s in zip(cut, scale, strict=True))
    resized = image.resize(size, Image.Resampling[resampling.upper()], box)  # type: ignore[arg-type]
    pixels = (np.asarray(resized, np.float32) / 255 - np.array(mean, np.float32)) / np.array(std, np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))

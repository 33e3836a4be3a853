"""What the processors of this package read of their nodes in a configuration."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from gitllm_plugin.config import OneOf, ReadIf, Rule, Says, node, unexpected
from gitllm_plugin.m3it.prompts import TEMPLATES
from gitllm_plugin.modeling.places import MOST_TILES
from gitllm_plugin.processors.image_transform import NORMALIZATIONS

_Three = tuple[float, float, float]


def _part_of_area(scale: tuple[float, float]) -> tuple[float, float]:
    if not 0 < scale[0] <= scale[1] <= 1:
        raise unexpected()
    return scale


def _normalization_faults(normalization: str | None, mean: Any, std: Any) -> Iterable[str]:
    if mean is None and std is None:
        return
    if normalization is not None:
        yield ".normalization is given together with mean or std; give either its name or both numbers"
    if mean is None or std is None or min(std) <= 0:
        yield (
            f".mean is {list(mean or ())} and std is {list(std or ())}, expected three numbers each, std above 0 "
            "(white is 1)"
        )


def _tiles_fault(max_tiles: int, resize: str | None) -> str | None:
    if max_tiles > 1 and resize == "shortest_edge":
        return ".max_tiles shows the whole picture, and resize=shortest_edge cuts of it: remove one of them"
    return None


@node("vis_processor")
class PictureSettings:
    """What all processors of pictures read."""

    name: str | None = None
    """The processor's registered name."""

    encoder: str | None = None
    """Hub name or folder of an image encoder: what its image processor does is the default of the other keys."""

    image_size: Annotated[int, Field(ge=1, le=8192), Says("a number of pixels such as 224, at most 8192")] | None = None
    """Height and width in pixels; null for what ``encoder`` or ``model.image_encoder`` takes, or 224."""

    normalization: Annotated[str, OneOf(NORMALIZATIONS)] | None = None
    """Mean and standard deviation by name; null for those of ``encoder`` or ``model.image_encoder``, or ``clip``."""

    mean: _Three | None = None
    """Of each channel, white is 1; with ``std``, in the place of ``normalization``."""

    std: _Three | None = None
    """Of each channel, white is 1."""

    resize: Literal["squash", "shortest_edge"] | None = None
    """``squash`` keeps the whole picture, ``shortest_edge`` its proportions and the central square; null for the
    encoder's, or ``squash``."""

    resampling: Literal["bicubic", "bilinear", "lanczos"] | None = None
    """How pixels are interpolated; null for the encoder's, or ``bicubic``."""

    max_tiles: Annotated[int, Field(ge=1, le=MOST_TILES), Says(f"1 to {MOST_TILES} tiles")] = 1
    """Cut a picture into at most so many tiles of ``image_size``, in the grid nearest to its shape; 1 for none."""

    thumbnail: Annotated[
        bool, ReadIf(("max_tiles",), lambda max_tiles: max_tiles > 1, "where a picture is cut into tiles (max_tiles)")
    ] = True
    """With ``max_tiles``, give the whole picture behind its tiles."""

    scaled_decode: bool = False
    """Decode JPEG files at the smallest size that is large enough."""

    RULES = (
        Rule(("normalization", "mean", "std"), _normalization_faults),
        Rule(("max_tiles", "resize"), _tiles_fault),
    )


def _crop_fault(crop: tuple[float, float] | None, resize: str | None) -> str | None:
    if crop is not None and resize not in (None, "squash"):
        return ".random_resized_crop squashes what it cuts out; remove resize or random_resized_crop"
    return None


@node("vis_processor")
class RandomPictureSettings(PictureSettings):
    """What processors for training read besides: what is drawn at random."""

    random_resized_crop: (
        Annotated[
            tuple[float, float],
            AfterValidator(_part_of_area),
            Says("the least and greatest part of the area, such as [0.5, 1.0]"),
        ]
        | None
    ) = None
    """Least and greatest part of the area that is cut out at random; null for none."""

    horizontal_flip: bool = False
    """Mirror every second picture at random."""

    RULES = (Rule(("random_resized_crop", "resize"), _crop_fault),)


@node("vis_processor")
class VideoSettings(PictureSettings):
    """What processors of videos read besides."""

    num_frames: Annotated[int, Field(ge=1, le=1024), Says("1 to 1024 frames")] = 8
    """Frames of a video, evenly spread."""

    RULES = (
        Rule(
            ("max_tiles",),
            lambda tiles: (
                ".max_tiles cuts pictures; frames of videos are one image each: remove it" if tiles > 1 else None
            ),
        ),
    )


@node("vis_processor")
class RandomVideoSettings(VideoSettings, RandomPictureSettings):
    """What processors of videos read in training."""


@node("text_processor")
class InstructionSettings:
    """How prompts are made."""

    name: str | None = None
    """The processor's registered name."""

    template: Annotated[str, OneOf(TEMPLATES, "prompt template")] = "article"
    """Of prompts."""

    instruction: str | None = None
    """Stands where a question comes without one; null for "Answer the question about the image.", or "Describe the
    picture." where there is no question."""

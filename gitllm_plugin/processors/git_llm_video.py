"""Video processors for LAVIS: several frames of a video as the images of one example."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lavis.common.registry import registry
from torch import Tensor

from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it.pictures import Picture, as_pictures, read_pixels
from gitllm_plugin.processors.image_transform import ImageTransform
from gitllm_plugin.processors.picture_processor import PictureProcessor
from gitllm_plugin.processors.settings import RandomVideoSettings, VideoSettings
from gitllm_plugin.processors.video_frames import read_frames, spread_evenly


@registry.register_processor("git_llm_video_eval")
class GitLLMVideoEvalProcessor(PictureProcessor):
    """Take frames evenly spread over a video and make pixel values of them.

    Args:
        transform: what to do with a frame.
        scaled_decode: see :class:`PictureProcessor`.
        num_frames: the most frames taken of a video.
    """

    Settings = VideoSettings

    def __init__(self, transform: ImageTransform, scaled_decode: bool = False, num_frames: int = 8):
        super().__init__(transform, scaled_decode)
        self.num_frames = num_frames

    def __call__(self, item: str | Path | Sequence[Picture] | Any) -> Tensor:
        """Make pixel values, float32 ``[F, 3, image_size, image_size]``, F at most ``num_frames``.

        Args:
            item: a video's path (needs PyAV), a list of pictures (:data:`~gitllm_plugin.m3it.pictures.Picture`), or an
                array or tensor of them, ``[F, H, W, 3]`` or ``[F, 3, H, W]``.

        Raises:
            ConfigError: a path is given and PyAV is not installed.
            DataError: the file cannot be decoded, or the item is none of these.
        """
        if isinstance(item, (str, Path)):
            frames = read_frames(item, self.num_frames)
        else:
            given = _as_frames(item, type(self).__name__)
            frames = (read_pixels(given[index]) for index in spread_evenly(len(given), self.num_frames))
        return self.transform.normalize(torch.stack(self.fit_alike(frames)))

    def load(self, images: Sequence[bytes], place: str, seed: int | None = None) -> Tensor:
        """Do as :meth:`PictureProcessor.load`, of frames evenly spread over ``images``."""
        chosen = spread_evenly(len(images), self.num_frames)
        return super().load([images[index] for index in chosen], place, seed)

    @classmethod
    def arguments(cls, settings: Any) -> dict[str, Any]:
        """Those of image processors, and ``num_frames``."""
        return {**super().arguments(settings), "num_frames": settings.num_frames}


@registry.register_processor("git_llm_video_train")
class GitLLMVideoTrainProcessor(GitLLMVideoEvalProcessor):
    """As in evaluation, plus ``random_resized_crop`` and ``horizontal_flip``, the same for all frames of a video."""

    Settings = RandomVideoSettings


def _as_frames(item: Any, processor: str) -> list[Picture]:
    """Give the frames of a list or of an array of four dimensions."""
    shape = getattr(item, "shape", None)
    several = isinstance(item, (list, tuple)) or (shape is not None and len(shape) == 4)
    if several and (frames := as_pictures(item)):
        return frames
    got = "nothing" if several else type(item).__name__ if shape is None else f"an array {list(shape)}"
    raise DataError(
        f"{processor} takes a video's path, a list of pictures, or an array [F, H, W, 3] or [F, 3, H, W] of them, got "
        f"{got}"
    )

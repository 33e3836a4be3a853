"""Video processors for LAVIS: several frames of a video as the images of one example."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lavis.common.registry import registry
from PIL import Image
from torch import Tensor

from gitllm_plugin.processors.image_transform import ImageTransform
from gitllm_plugin.processors.picture_processor import PictureProcessor
from gitllm_plugin.processors.settings import RandomVideoSettings, VideoSettings
from gitllm_plugin.processors.video_frames import read_frames, spread_evenly


@registry.register_processor("git_llm_video_eval")
class GitLLMVideoEvalProcessor(PictureProcessor):
    """Takes frames evenly spread over a video and makes pixel values of them.

    Args:
        transform: what to do with a frame.
        scaled_decode: see :class:`PictureProcessor`.
        num_frames: the most frames taken of a video.
    """

    Settings = VideoSettings

    def __init__(self, transform: ImageTransform, scaled_decode: bool = False, num_frames: int = 8):
        super().__init__(transform, scaled_decode)
        self.num_frames = num_frames

    def __call__(self, item: str | Path | Sequence[Image.Image] | np.ndarray | Tensor) -> Tensor:
        """Makes pixel values: float32 [F, 3, image_size, image_size], F at most ``num_frames``.

        Args:
            item: a video's path (needs PyAV), PIL images, or uint8 [F, H, W, 3].

        Raises:
            TypeError: if the item is none of these.
            ConfigError: if a path is given and PyAV is not installed.
            DataError: if the file cannot be decoded.
        """
        if isinstance(item, (str, Path)):
            frames = read_frames(item, self.num_frames)
        else:
            frames = _as_arrays(item, type(self).__name__)
            frames = [frames[index] for index in spread_evenly(len(frames), self.num_frames)]
        return self.transform.normalize(torch.stack(self.fit_alike(frames)))

    def load(self, images: Sequence[bytes], place: str, seed: int | None = None) -> Tensor:
        """As :meth:`PictureProcessor.load`, of frames evenly spread over ``images``."""
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


def _as_arrays(item: Any, processor: str) -> list[np.ndarray]:
    if isinstance(item, Sequence) and item and all(isinstance(frame, Image.Image) for frame in item):
        return [np.array(frame.convert("RGB")) for frame in item]
    frames = item.numpy() if isinstance(item, torch.Tensor) else item
    if isinstance(frames, np.ndarray) and frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[-1] == 3:
        return list(frames)
    described = f"{frames.dtype} {list(frames.shape)}" if isinstance(frames, np.ndarray) else type(item).__name__
    raise TypeError(f"{processor} takes a video's path, PIL images or uint8 [F, H, W, 3], got {described}")

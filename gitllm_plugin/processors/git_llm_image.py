"""Image processors for LAVIS."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lavis.common.registry import registry
from lavis.processors.base_processor import BaseProcessor
from PIL import Image
from torch import Tensor

from gitllm_plugin.config_keys import check_keys
from gitllm_plugin.m3it.images import decode_pixels
from gitllm_plugin.processors.image_transform import ImageTransform
from gitllm_plugin.processors.transform_config import RANDOM_KEYS, TRANSFORM_KEYS, read_transform


@registry.register_processor("git_llm_image_eval")
class GitLLMImageEvalProcessor(BaseProcessor):
    """Makes pixel values of a picture, always the same ones.

    Called with a PIL image it gives normalised floats, as LAVIS's processors do. The data sets of this package call
    :meth:`load` instead, which takes encoded files and gives uint8: a quarter of the bytes to move, normalised where
    the model is, with ``transform.mean`` and ``transform.std``.

    Args:
        transform: what to do with an image.
        scaled_decode: decode JPEG files at the smallest size that is large enough. Faster; pixels differ by about
            one grey level on average.
    """

    CONFIG_KEYS = TRANSFORM_KEYS | {"scaled_decode"}

    def __init__(self, transform: ImageTransform, scaled_decode: bool = False):
        super().__init__()
        self.transform = transform
        self.scaled_decode = scaled_decode

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

    def load(self, images: Sequence[bytes], place: str, seed: int | None = None) -> Tensor:
        """Decodes and resizes the images of one example, all in the same way where that is random.

        Args:
            images: encoded image files, at least one.
            place: which example they belong to, for messages.
            seed: of what is random; None: drawn from torch's generator.

        Returns:
            uint8 [3, image_size, image_size], or [F, 3, image_size, image_size] of several.

        Raises:
            DataError: if a file is broken or too large.
        """
        least_side = self.transform.least_side if self.scaled_decode else 0
        pixels = self.fit_alike((decode_pixels(image, place, least_side=least_side) for image in images), seed)
        return pixels[0] if len(pixels) == 1 else torch.stack(pixels)

    def fit_alike(self, pictures: Iterable[np.ndarray], seed: int | None = None) -> list[Tensor]:
        """As :meth:`load`, of decoded pictures, uint8 [height, width, 3] each, to uint8 [3, H, W] each."""
        if self.transform.is_random and seed is None:
            seed = int(torch.randint(2**62, ()))
        pixels = []
        for picture in pictures:
            with _drawing_from(seed if self.transform.is_random else None):
                pixels.append(self.transform.fit(picture))
        return pixels

    @classmethod
    def from_config(cls, cfg: Mapping[str, Any] | None = None) -> "GitLLMImageEvalProcessor":
        """Builds the processor.

        Args:
            cfg: None or a mapping with any of ``CONFIG_KEYS``; see
                :func:`~gitllm_plugin.processors.transform_config.read_transform`.

        Raises:
            ConfigError: if a key or value is not known.
        """
        cfg = cfg or {}
        check_keys(cls.__name__, cfg, cls.CONFIG_KEYS | {"name"})
        return cls(read_transform(cls.__name__, cfg), bool(cfg.get("scaled_decode", False)))


@registry.register_processor("git_llm_image_train")
class GitLLMImageTrainProcessor(GitLLMImageEvalProcessor):
    """As in evaluation, plus ``random_resized_crop`` and ``horizontal_flip``.

    Both are off by default: instructions speak of left and right, and of what a crop may cut off.
    """

    CONFIG_KEYS = GitLLMImageEvalProcessor.CONFIG_KEYS | RANDOM_KEYS


@contextmanager
def _drawing_from(seed: int | None) -> Iterator[None]:
    """Seeds torch's CPU generator for a while; None leaves it alone."""
    if seed is None:
        yield
        return
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)

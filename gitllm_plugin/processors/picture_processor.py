"""What all image and video processors of this package share."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from lavis.processors.base_processor import BaseProcessor
from torch import Tensor

from gitllm_plugin.config import read
from gitllm_plugin.m3it.images import decode_pixels
from gitllm_plugin.processors.image_transform import ImageTransform
from gitllm_plugin.processors.settings import PictureSettings
from gitllm_plugin.processors.tiles import in_tiles
from gitllm_plugin.processors.transform_config import make_transform

_Made = TypeVar("_Made")


class PictureProcessor(BaseProcessor):
    """Make pixels of encoded pictures; a registered processor adds what it takes when it is called.

    Called, processors give normalised floats, as LAVIS's do. The data sets of this package call :meth:`load`, which
    takes encoded files and gives uint8: a quarter of the bytes to move, normalised where the model is, with
    ``transform.mean`` and ``transform.std``.

    Args:
        transform: what to do with a picture.
        scaled_decode: decode JPEG files at the smallest size that is large enough. Faster; pixels differ by one or
            two grey levels on average.
    """

    Settings: ClassVar[type[PictureSettings]] = PictureSettings

    def __init__(self, transform: ImageTransform, scaled_decode: bool = False):
        # Not super().__init__(): it stores a lambda, which cannot be pickled into a data loader's workers.
        self.transform = transform
        self.scaled_decode = scaled_decode

    def load(self, images: Sequence[bytes], place: str, seed: int | None = None) -> Tensor:
        """Decode and resize the images of one example, all in the same way where that is random.

        Args:
            images: encoded image files, at least one.
            place: which example they belong to, for messages.
            seed: of what is random; None: drawn from torch's generator.

        Returns:
            uint8 ``[3, image_size, image_size]``, or ``[F, 3, image_size, image_size]`` of several.

        Raises:
            DataError: a file is broken or too large.
        """
        pixels = self.fit_alike(self._decoded(images, place), seed)
        return pixels[0] if len(pixels) == 1 else torch.stack(pixels)

    def load_tiles(self, images: Sequence[bytes], place: str, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """Do as :meth:`load`, with each picture in tiles.

        Returns:
            uint8 ``[F, 3, image_size, image_size]``, all tiles of one picture and then of the next, and their places,
            long ``[F, 3]``, see :mod:`gitllm_plugin.modeling.places`.
        """
        return in_tiles(self._alike(self.transform.tiles, self._decoded(images, place), seed))

    def fit_alike(self, pictures: Iterable[np.ndarray], seed: int | None = None) -> list[Tensor]:
        """Do as :meth:`load`, of decoded pictures, uint8 ``[height, width, 3]`` each, to uint8 ``[3, H, W]`` each."""
        return self._alike(self.transform.fit, pictures, seed)

    def _decoded(self, images: Sequence[bytes], place: str) -> Iterator[np.ndarray]:
        least_side = self.transform.least_side if self.scaled_decode else 0
        return (decode_pixels(image, place, least_side=least_side) for image in images)

    def _alike(
        self, make: Callable[[np.ndarray], _Made], pictures: Iterable[np.ndarray], seed: int | None
    ) -> list[_Made]:
        if self.transform.is_random and seed is None:
            seed = int(torch.randint(2**62, ()))
        made = []
        for picture in pictures:
            with _drawing_from(seed if self.transform.is_random else None):
                made.append(make(picture))
        return made

    @classmethod
    def from_config(cls, cfg: Mapping[str, Any] | None = None) -> "PictureProcessor":
        """Build the processor from its node of a configuration; None for the defaults.

        Raises:
            ConfigError: naming everything in the node that is wrong.
        """
        return cls(**cls.arguments(read(cls.Settings, cls.__name__, cfg)))

    @classmethod
    def arguments(cls, settings: Any) -> dict[str, Any]:
        """Make the arguments of the class of its settings."""
        return {"transform": make_transform(settings), "scaled_decode": settings.scaled_decode}


@contextmanager
def _drawing_from(seed: int | None) -> Iterator[None]:
    """Seed torch's CPU generator for a while; None leave it alone."""
    if seed is None:
        yield
        return
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)

"""From a picture to the pixel values that an image encoder was trained on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gitllm_plugin.m3it.pictures import Picture, read_pixels
from gitllm_plugin.modeling.pixels import normalize_pixels
from gitllm_plugin.processors.tiles import best_grid, cut, in_tiles

NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    # mean and standard deviation of red, green and blue, where white is 1
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "efficientnet_lite": ((127 / 255,) * 3, (128 / 255,) * 3),
}
"""Mean and standard deviation by the name of the encoder family that uses them."""

RESAMPLINGS = ("bicubic", "bilinear", "lanczos")

ROUND_CENTRE = "round_centre"
"""In ``preprocessor_config.json``, of :class:`ImageTransform`'s attribute; transformers keeps and does not read it."""

_MOST_RESIZED = 2**24
"""Pixels of a picture that is resized as a whole before its centre is cut out, 48 MiB."""


@dataclass(frozen=True, repr=False)
class ImageTransform:
    """Resizing of a picture to a square, antialiased, and normalising it.

    Attributes:
        image_size: height and width of the result, in pixels.
        mean: of each channel, where white is 1.
        std: of each channel, where white is 1.
        resize: ``squash`` keeps the whole picture and changes its proportions; ``shortest_edge`` keeps the
            proportions and cuts out the centre square.
        shortest_edge: with ``shortest_edge``, the shorter side before the centre is cut out; None for ``image_size``.
        resampling: ``bicubic``, ``bilinear`` or ``lanczos``.
        crop_scale: None, or the least and greatest part of the picture's area to cut out at random, with sides
            between 3:4 and 4:3, before it is squashed.
        horizontal_flip: whether to mirror every second picture, at random.
        round_centre: with ``shortest_edge``, where half a pixel is too much: False cuts less away on top and on the
            left, as transformers does; True rounds it to an even number, as torchvision does, and timm with it.
        max_tiles: 1, or into how many tiles :meth:`tiles` cuts a picture, at most.
        thumbnail: whether the whole picture, squashed, stands behind its tiles.
    """

    image_size: int
    mean: Sequence[float]
    std: Sequence[float]
    resize: str = "squash"
    shortest_edge: int | None = None
    resampling: str = "bicubic"
    crop_scale: tuple[float, float] | None = None
    horizontal_flip: bool = False
    round_centre: bool = False
    max_tiles: int = 1
    thumbnail: bool = True

    def __repr__(self) -> str:
        """Say what it does; stored features are known by these words, so that they change with the pixels alone."""
        unsaid = set() if self.round_centre else {"round_centre"}
        unsaid |= set() if self.max_tiles > 1 else {"max_tiles", "thumbnail"}
        told = [field.name for field in fields(self) if field.name not in unsaid]
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in told)})"

    @property
    def least_side(self) -> int:
        """The shortest side of a picture that loses nothing to this transform by being small."""
        # A picture of any shape may have all its tiles one beside the other.
        side = self.image_size * self.max_tiles
        if self.crop_scale is not None:
            return math.ceil(side / math.sqrt(self.crop_scale[0]))
        return self.shortest_edge or side

    @property
    def is_random(self) -> bool:
        """Whether two calls may differ."""
        return self.crop_scale is not None or self.horizontal_flip

    def __call__(self, image: Picture) -> Tensor:
        """Make pixel values; what is random is drawn from torch's generator.

        Args:
            image: a picture, of any size; see :data:`~gitllm_plugin.m3it.pictures.Picture`.

        Returns:
            float32 ``[3, image_size, image_size]``.

        Raises:
            DataError: see :func:`~gitllm_plugin.m3it.pictures.read_pixels`.
        """
        return self.normalize(self.fit(read_pixels(image)))

    def images(self, pictures: Sequence[Picture]) -> tuple[Tensor, Tensor | None]:
        """Make what a model reads of the pictures of one text, at least one.

        Returns:
            float32 ``[F, 3, image_size, image_size]``, and of pictures in tiles their places, long ``[F, 3]``, see
            :mod:`gitllm_plugin.modeling.places`.

        Raises:
            DataError: see :func:`~gitllm_plugin.m3it.pictures.read_pixels`.
        """
        if self.max_tiles == 1:
            return torch.stack([self(picture) for picture in pictures]), None
        tiles, places = in_tiles([self.tiles(read_pixels(picture)) for picture in pictures])
        return self.normalize(tiles), places

    def fit(self, picture: np.ndarray) -> Tensor:
        """Cut and resize, with the pixels of Pillow within one grey level; random as in :meth:`__call__`.

        Args:
            picture: uint8 ``[height, width, 3]``.

        Returns:
            uint8 ``[3, image_size, image_size]``.
        """
        size = (self.image_size, self.image_size)
        if self.crop_scale is not None or self.resize == "squash":
            pixels = self._resize(self._cropped(picture), size)
        else:
            pixels = self._resize_and_cut(picture)
        return (pixels.flip(-1) if self._flips() else pixels).contiguous()

    def tiles(self, picture: np.ndarray) -> tuple[Tensor, Tensor]:
        """Squash into the nearest grid of at most ``max_tiles``, and cut; random as in :meth:`__call__`.

        Args:
            picture: uint8 ``[height, width, 3]``.

        Returns:
            The images, uint8 ``[T, 3, image_size, image_size]``: the tiles row by row, and behind several the whole
            picture, with ``thumbnail``. And their rows and columns, long ``[T, 2]``, counted from 1, 0 for the whole.
        """
        side, picture = self.image_size, self._cropped(picture)
        height, width = picture.shape[:2]
        rows, columns = best_grid(height, width, side, self.max_tiles)
        if self._flips():
            picture = np.ascontiguousarray(picture[:, ::-1])  # the whole picture, and not each tile
        tiles, places = cut(self._resize(picture, (rows * side, columns * side)), side)
        if rows * columns == 1:
            return tiles, torch.zeros_like(places)
        if not self.thumbnail:
            return tiles, places
        whole = self._resize(picture, (side, side))
        return torch.cat([tiles, whole[None]]), torch.nn.functional.pad(places, (0, 0, 0, 1))

    def normalize(self, pixels: Tensor) -> Tensor:
        """Normalise uint8 ``[..., 3, H, W]`` to float32 of the same shape."""
        return normalize_pixels(pixels, torch.tensor(self.mean), torch.tensor(self.std))

    def as_preprocessor_config(self) -> dict[str, Any]:
        """The same transform as Hugging Face's ``preprocessor_config.json``; what is random is left out."""
        side = {"height": self.image_size, "width": self.image_size}
        squash = self.resize == "squash"
        return {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": side if squash else {"shortest_edge": self.shortest_edge or self.image_size},
            "resample": int(Image.Resampling[self.resampling.upper()]),
            "do_center_crop": not squash,
            "crop_size": side,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            **({ROUND_CENTRE: True} if self.round_centre else {}),
        }

    def _cropped(self, picture: np.ndarray) -> np.ndarray:
        return picture if self.crop_scale is None else _crop_at_random(picture, self.crop_scale)

    def _flips(self) -> bool:
        return self.horizontal_flip and bool(torch.rand(()) < 0.5)

    def _resize(self, picture: np.ndarray, size: tuple[int, int]) -> Tensor:
        """uint8 [height, width, 3] to uint8 [3, *size]."""
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None]  # channels last in memory, which is fastest
        return torch.nn.functional.interpolate(pixels, size, mode=self.resampling, antialias=True)[0]

    def _keep_proportions(self, height: int, width: int) -> tuple[int, int]:
        """Height and width with the shorter side as it is to be, rounded as transformers rounds."""
        short = self.shortest_edge or self.image_size
        long = int(short * max(height, width) / min(height, width))
        return (short, long) if height <= width else (long, short)

    def _resize_and_cut(self, picture: np.ndarray) -> Tensor:
        """Give the central square of the picture with its shorter side as it is to be."""
        rows, columns = self._keep_proportions(*picture.shape[:2])
        top, left = self._edge(rows), self._edge(columns)
        if rows * columns <= _MOST_RESIZED:
            return self._resize(picture, (rows, columns))[:, top : top + self.image_size, left : left + self.image_size]
        # A strip of 20,000 x 1 would have 3 GB: Pillow, which can, computes the square alone, looking beyond its edges.
        # First across and then down, as torch does; both round to whole levels between the two.
        side, resampling = self.image_size, Image.Resampling[self.resampling.upper()]
        height, width = picture.shape[:2]
        across, down = width / columns, height / rows
        strip = Image.fromarray(picture)
        strip = strip.resize((side, height), resampling, (left * across, 0, min((left + side) * across, width), height))
        square = strip.resize((side, side), resampling, (0, top * down, side, min((top + side) * down, height)))
        return torch.from_numpy(np.array(square)).permute(2, 0, 1)

    def _edge(self, side: int) -> int:
        """Count the pixels that are cut away in front of the centre."""
        return round((side - self.image_size) / 2) if self.round_centre else (side - self.image_size) // 2


def _crop_at_random(picture: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    from torchvision.transforms import RandomResizedCrop

    sized = torch.empty(0, *picture.shape[:2])  # it looks at the last two sizes alone
    top, left, rows, columns = RandomResizedCrop.get_params(sized, list(scale), [3 / 4, 4 / 3])
    return picture[top : top + rows, left : left + columns]

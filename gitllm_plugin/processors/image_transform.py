"""From a picture to the pixel values that an image encoder was trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    # mean and standard deviation of red, green and blue, where white is 1
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "efficientnet_lite": ((127 / 255,) * 3, (128 / 255,) * 3),
}
"""Mean and standard deviation by the name of the encoder family that uses them."""

RESIZE_MODES = ("squash", "shortest_edge")


@dataclass(frozen=True)
class ImageTransform:
    """Resizes a picture to a square (bicubic, antialiased) and normalises it.

    Attributes:
        image_size: height and width of the result, in pixels.
        mean: of each channel, where white is 1.
        std: of each channel, where white is 1.
        resize: ``squash`` keeps the whole picture and changes its proportions; ``shortest_edge`` keeps the
            proportions and the centre square.
        crop_scale: None, or the least and greatest part of the picture's area to cut out at random (from
            torch's generator, with sides between 3:4 and 4:3) before it is squashed.
    """

    image_size: int
    mean: Sequence[float]
    std: Sequence[float]
    resize: str = "squash"
    crop_scale: tuple[float, float] | None = None

    def __call__(self, image: Image.Image) -> Tensor:
        """Makes pixel values.

        Args:
            image: a picture of any size and mode.

        Returns:
            float32 [3, image_size, image_size].
        """
        size = (self.image_size, self.image_size)
        resized = image.convert("RGB").resize(size, Image.Resampling.BICUBIC, box=self._choose_box(image))
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()  # [3, H, W] uint8
        # (pixels / 255 - mean) / std, in two passes over the picture
        std = torch.tensor(self.std).view(3, 1, 1)
        mean = torch.tensor(self.mean).view(3, 1, 1)
        return pixels.float().mul_(1 / (255 * std)).sub_(mean / std)

    def crop(self, image: Image.Image) -> Image.Image:
        """The part of a picture that the encoder sees, in the picture's own resolution (without random crops)."""
        if self.resize != "shortest_edge":
            return image
        return image.crop(tuple(round(edge) for edge in _central_square(image)))

    def as_preprocessor_config(self) -> dict[str, Any]:
        """The same transform as Hugging Face's ``preprocessor_config.json`` (random crops are left out)."""
        side = {"height": self.image_size, "width": self.image_size}
        squash = self.resize == "squash"
        return {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": side if squash else {"shortest_edge": self.image_size},
            "resample": int(Image.Resampling.BICUBIC),
            "do_center_crop": not squash,
            "crop_size": side,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }

    def _choose_box(self, image: Image.Image) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the part of the picture that is used."""
        width, height = image.size
        if self.crop_scale is not None:
            from torchvision.transforms import RandomResizedCrop

            # It takes PIL images too, though it is annotated for tensors.
            crop = RandomResizedCrop.get_params(image, list(self.crop_scale), [3 / 4, 4 / 3])  # pyright: ignore
            top, left, rows, columns = crop
            return left, top, left + columns, top + rows
        if self.resize == "shortest_edge":
            return _central_square(image)
        return 0, 0, width, height


def _central_square(image: Image.Image) -> tuple[float, float, float, float]:
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side

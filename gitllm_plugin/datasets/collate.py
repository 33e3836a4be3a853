"""From the items of a data set to one batch, in which the texts of an item share its picture."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gitllm_plugin.modeling.pixels import normalize_pixels
from gitllm_plugin.modeling.places import stack_images

TEXT_KEYS = ("text_input", "text_output", "instance_id", "config", "references", "question")
"""What every text of an item has; each becomes a list of the batch."""


def collate_groups(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Flatten items to a batch.

    Args:
        items: mappings with ``image`` ([3, H, W], [F, 3, H, W] for several frames, or None), ``texts``, a list of
            mappings with TEXT_KEYS, ``places`` of pictures in tiles (int64 [F, 3]; None otherwise), and
            ``image_mean`` and ``image_std`` of images in uint8 (float [3]; None otherwise).

    Returns:
        ``image``: [U, 3, H, W] one an item (zeros where it has none), [U, F, 3, H, W]
        padded with zeros where an item has several frames, or None if no item has an image;
        ``image_index``: int64 [N], which of the U each of the N texts is about;
        ``num_images``: int64 [U], how many frames are real, only if some item has fewer than F; of pictures in tiles
        int64 [U, F, 3], which tile each frame is (:mod:`gitllm_plugin.modeling.places`);
        ``image_mean`` and ``image_std``: float [U, 3], only where the images are uint8 and still to be normalised;
        ``image_encoder``: what made the features that stand in the place of images, only where they do;
        for each of TEXT_KEYS a list of N;
        and ``text_rejected`` and ``images_seen``, where a text has one: a list of N, None where it has not.
    """
    # What was skipped in an evaluation has no texts, and an image that nothing is asked about is not encoded.
    items = [item for item in items if item["texts"]] or items
    # Images are stacked once per item, and texts say which is theirs: the model encodes each once.
    image_index = [row for row, item in enumerate(items) for _ in item["texts"]]
    texts = [text for item in items for text in item["texts"]]
    batch: dict[str, Any] = {key: [text[key] for text in texts] for key in TEXT_KEYS}
    for key in ("text_rejected", "images_seen"):
        if any(key in text for text in texts):
            batch[key] = [text.get(key) for text in texts]
    batch["image_index"] = torch.tensor(image_index, dtype=torch.int64)
    batch.update(_stack_images(items))
    if items[0].get("image_encoder") is not None:
        batch["image_encoder"] = items[0]["image_encoder"]
    return batch


def _stack_images(items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor | None]:
    """Make ``image`` and what belongs to it."""
    images = [item["image"] for item in items]
    raw = [image is not None and image.dtype == torch.uint8 for image in images]
    if not any(raw):
        return _stack(items, images)
    # Data sets of a mixture with unlike processors, this package's and LAVIS's own: then all become floats here.
    if not all(raw[row] or image is None for row, image in enumerate(images)):
        return _stack(items, [_as_float(item) for item in items])
    # An item without an image is normalised like its neighbour: its zeros are never looked at.
    like = items[raw.index(True)]
    return {
        **_stack(items, images),
        **{
            key: torch.stack([(item if raw[row] else like)[key] for row, item in enumerate(items)])
            for key in ("image_mean", "image_std")
        },
    }


def _as_float(item: Mapping[str, Any]) -> Tensor | None:
    image = item["image"]
    if image is None or image.dtype != torch.uint8:
        return image
    return normalize_pixels(image, item["image_mean"], item["image_std"])


def _stack(items: Sequence[Mapping[str, Any]], images: Sequence[Tensor | None]) -> dict[str, Tensor | None]:
    """Make ``image`` and, where rows differ in their number of frames or are in tiles, ``num_images``."""
    image, num_images = stack_images(images, [item.get("places") for item in items])
    # Without frames the batch has the shape that it has in every other data set of LAVIS.
    if image is not None and image.shape[1] == 1 and (num_images is None or num_images.ndim == 1):
        image = image.squeeze(1)
    return {"image": image, **({} if num_images is None else {"num_images": num_images})}

"""What a batch of training looks like: its texts with what is learnt of them, and its images."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from gitllm_plugin.common.loading import num_samples

_MOST_TEXTS = 8
_MOST_IMAGES = 16
_COLUMNS = 4


@contextmanager
def encoded_texts(model: Any) -> Iterator[list[Any]]:
    """Keep what the model's text encoder gives for training inside the block; nothing for models without one."""
    kept: list[Any] = []
    encoder = getattr(model, "text_encoder", None)
    if encoder is None or not hasattr(encoder, "prompts_and_answers"):
        yield kept
        return

    class Recorder:
        """The encoder, which also keeps what it gives."""

        def __getattr__(self, name: str) -> Any:
            return getattr(encoder, name)

        def prompts_and_answers(self, *args: Any, **kwargs: Any) -> Any:
            kept.append(encoder.prompts_and_answers(*args, **kwargs))
            return kept[-1]

    model.text_encoder = Recorder()
    try:
        yield kept
    finally:
        model.text_encoder = encoder


def describe_texts(batch: Mapping[str, Any], encoded: Any, tokenizer: Any) -> str:
    """The texts of a batch, each with the tokens that are learnt in brackets.

    Args:
        batch: In LAVIS's form.
        encoded: `input_ids`, `attention_mask` and `labels` (-100 where nothing is learnt) of its texts; None where
            the model does not tell.
        tokenizer: That made them.
    """
    count = num_samples(dict(batch))
    lines = [f"{count} texts, {_num_images(batch)} images; what is learnt stands in [ ]"]
    for row in range(min(count, _MOST_TEXTS)):
        image = batch["image_index"][row] if "image_index" in batch else row
        name = batch["instance_id"][row] if "instance_id" in batch else row
        about = f", image {int(image)}" if batch.get("image") is not None else ", no image"
        lines.append(f"  {name}{about}: {_text(batch, encoded, tokenizer, row)}")
    if count > _MOST_TEXTS:
        lines.append(f"  and {count - _MOST_TEXTS} more")
    return "\n".join(lines)


def _num_images(batch: Mapping[str, Any]) -> int:
    image = batch.get("image")
    return 0 if image is None else len(image)


def _text(batch: Mapping[str, Any], encoded: Any, tokenizer: Any, row: int) -> str:
    if encoded is None:
        return f"{batch.get('text_input', [''])[row]!r} [{batch.get('text_output', [''])[row]!r}]"
    pieces = []
    for token, is_real, label in zip(
        encoded.input_ids[row].tolist(), encoded.attention_mask[row].tolist(), encoded.labels[row].tolist(), strict=True
    ):
        if is_real:
            piece = tokenizer.decode([token]).replace("\n", "\\n")
            pieces.append(piece if label == -100 else f"[{piece}]")
    return "".join(pieces)


def draw_images(batch: Mapping[str, Any], path: Path) -> bool:
    """Write the images of a batch, as the model gets them, beside each other as PNG; False where it has none.

    Each is stretched to its own darkest and lightest value: what is shown is normalised already.
    """
    image = batch.get("image")
    if not isinstance(image, Tensor) or image.ndim not in (4, 5) or image.shape[-3] != 3:  # features, or none
        return False
    pictures = image.flatten(0, 1) if image.ndim == 5 else image
    tiles = [_picture(pixels) for pixels in pictures[:_MOST_IMAGES].cpu()]
    width, height = tiles[0].size
    grid = Image.new("RGB", (_COLUMNS * width, ceil(len(tiles) / _COLUMNS) * height))
    for place, tile in enumerate(tiles):
        grid.paste(tile, (place % _COLUMNS * width, place // _COLUMNS * height))
    path.parent.mkdir(parents=True, exist_ok=True)
    grid.save(path)
    return True


def _picture(pixels: Tensor) -> Image.Image:
    """An image from `[3, H, W]`."""
    if pixels.dtype != torch.uint8:
        low, high = pixels.min(), pixels.max()
        pixels = ((pixels.float() - low) / (high - low).clamp(min=1e-6) * 255).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())

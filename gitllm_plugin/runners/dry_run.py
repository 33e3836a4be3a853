"""A look at a training before it is started: nothing is trained, nothing but a figure is written.

Weights are counted; activations and the seconds of a step are measured on the first batch, which is shown.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor, nn

from gitllm_plugin.common.files import atomic_path
from gitllm_plugin.common.loading import move_batch, num_samples
from gitllm_plugin.common.progress import peak_memory
from gitllm_plugin.modeling.parameters import describe_parameters, parameter_rows
from gitllm_plugin.protocols import TextsEncoder, offers
from gitllm_plugin.runners.length import Position, RunLength
from gitllm_plugin.runners.saved_config import without_secrets
from gitllm_plugin.secret_values import hide_secrets
from gitllm_plugin.tables import as_text

FIGURE = "first_batch.png"
_ADAM_STATES = 2  # the two moments of each trained number, in its own format
_MOST_TEXTS = 8
_MOST_IMAGES = 16
_COLUMNS = 4


def dry_run(runner: Any) -> str:
    """Describe a training: configuration, parameters, first batch, memory and time.

    Args:
        runner: a ``git_llm`` runner; no weight of its model changes, but its data is read from.
    """
    parts = runner.parts
    model = parts.bare_model
    run_cfg = parts.run_cfg
    parts.check_splits([*run_cfg.train_splits, *run_cfg.valid_splits, *run_cfg.test_splits], runner.task)
    model.train()
    batch = next(iter(parts.data.batches(Position())))
    samples = move_batch(batch, parts.bare_model, parts.device)
    samples |= {"epoch": 0, "iters": 0, "num_iters_per_epoch": parts.length.iters_per_epoch}

    def loss_of_batch() -> Tensor:
        with parts.autocast():
            return runner.task.train_step(model=model, samples=samples)

    with encoded_texts(model) as encoded:
        activations, seconds = measure_step(model, loss_of_batch)
    tokenizer = model.text_encoder.tokenizer if encoded else None
    figure = parts.folder / FIGURE
    images = f"images: {figure}" if draw_images(batch, figure) else "the batch has no images"
    sections = {
        "configuration": OmegaConf.to_yaml(OmegaConf.create(without_secrets(parts.config.config))).rstrip(),
        "parameters": as_text(describe_parameters(parameter_rows(getattr(model, "model", model)))),
        "first batch": f"{describe_texts(batch, encoded[0] if encoded else None, tokenizer)}\n{images}",
        "memory": f"{estimate_memory(model, activations)}\n  this process reached {peak_memory() / 2**20:,.1f} MiB",
        "time": describe_time(parts.length, seconds),
    }
    return hide_secrets("\n\n".join(f"== {title}\n{text}" for title, text in sections.items()))


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device, without what torch and the libraries need for themselves.

    Attributes:
        frozen: weights that are not trained.
        trained: weights that are.
        gradients: of the trained weights.
        optimizer: AdamW's moments.
        activations: what the forward pass of one batch keeps for the backward pass.
    """

    frozen: int
    trained: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.frozen + self.trained + self.gradients + self.optimizer + self.activations

    def __str__(self) -> str:
        lines = [f"  {name:<12}{value / 2**20:>12,.1f} MiB" for name, value in vars(self).items()]
        return "\n".join([*lines, f"  {'together':<12}{self.total / 2**20:>12,.1f} MiB"])


def estimate_memory(model: nn.Module, activations: int) -> MemoryEstimate:
    """Count the weights of ``model``, and what training them with AdamW adds."""
    frozen = sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return MemoryEstimate(frozen, trained, trained, _ADAM_STATES * trained, activations)


def measure_step(model: nn.Module, loss_of_batch: Callable[[], Tensor]) -> tuple[int, float]:
    """Measure the bytes that a batch's forward pass keeps, and the seconds of forward and backward pass.

    The batch is computed twice: the first time memory is counted, and whatever is made once is made; the second
    time the clock runs. No weight changes.

    Args:
        model: whose weights do not count as kept.
        loss_of_batch: computes the loss.
    """
    kept: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    # By storage and not by tensor: views of one tensor are kept once. Weights are counted elsewhere.
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss_of_batch().backward()
    began = time.perf_counter()
    loss_of_batch().backward()
    # A GPU works on while Python has gone ahead.
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    model.zero_grad(set_to_none=True)
    return sum(kept.values()), seconds


def describe_time(length: RunLength, seconds_per_batch: float) -> str:
    """Say how long the run is, and how long it takes at the measured pace."""
    total = length.total_iters * seconds_per_batch
    hours, rest = divmod(int(total), 3600)
    return (
        f"{length.max_epoch} epochs of {length.iters_per_epoch} batches, {length.total_iters} batches in all, "
        f"{length.steps_until(length.total_iters)} optimizer steps.\n"
        f"  a batch takes {seconds_per_batch:.3f} s here, forward and backward: all of them "
        f"{hours}:{rest // 60:02d}:{rest % 60:02d}, without reading data, optimizer and evaluations"
    )


@contextmanager
def encoded_texts(model: Any) -> Iterator[list[Any]]:
    """Keep what the model's text encoder gives for training inside the block; nothing for models without one."""
    kept: list[Any] = []
    encoder = getattr(model, "text_encoder", None)
    if not offers(encoder, TextsEncoder):
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
    """Show the texts of a batch, each with the tokens that are learnt in brackets.

    Args:
        batch: in LAVIS's form.
        encoded: ``input_ids``, ``attention_mask`` and ``labels`` (-100 where nothing is learnt) of its texts; None
            where the model does not tell.
        tokenizer: that made them.
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
    """Write the images of a batch, as the model gets them, beside each other as PNG, and tell whether it has any.

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
    with atomic_path(path) as partial:
        grid.save(partial, format="PNG")
    return True


def _picture(pixels: Tensor) -> Image.Image:
    """Make an image of ``[3, H, W]``."""
    if pixels.dtype != torch.uint8:
        low, high = pixels.min(), pixels.max()
        pixels = ((pixels.float() - low) / (high - low).clamp(min=1e-6) * 255).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())

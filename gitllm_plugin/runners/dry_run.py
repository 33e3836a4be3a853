"""A look at a training before it is started: nothing is trained, nothing but a figure is written.

The first batch is shown. Its memory is computed without weights (:mod:`gitllm_plugin.runners.memory`), its seconds are
measured where the weights are at hand.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor, nn

from gitllm_plugin.common import ranks
from gitllm_plugin.common.device import free_memory
from gitllm_plugin.common.files import atomic_path
from gitllm_plugin.common.loading import move_batch, num_samples
from gitllm_plugin.common.simulated_memory import Simulation
from gitllm_plugin.modeling.description import DESCRIPTION
from gitllm_plugin.modeling.parameters import describe_parameters, parameter_rows
from gitllm_plugin.modeling.pretrained import folder_of_hub, weight_files
from gitllm_plugin.protocols import CountingTask, TextsEncoder, offers, weight_of_loss
from gitllm_plugin.runners import precision
from gitllm_plugin.runners.length import Position, RunLength
from gitllm_plugin.runners.memory import Step, describe_peaks
from gitllm_plugin.runners.saved_config import without_secrets
from gitllm_plugin.secret_values import hide_secrets
from gitllm_plugin.tables import as_text, terminal_width

FIGURE = "first_batch.png"
_MOST_TEXTS = 8
_MOST_IMAGES = 16
_COLUMNS = 4


def dry_run(
    runner: Any,
    model: nn.Module,
    load_model: Callable[[], nn.Module] | None = None,
    leave_group: Callable[[], None] = lambda: None,
) -> str:
    """Describe a training: configuration, parameters, first batch, memory and time; "" on all ranks but the first.

    Args:
        runner: a ``git_llm`` runner, whose data is read from.
        model: the runner's, as it was given; no weight of it changes.
        load_model: gives the model with its weights, where ``model`` has none.
        leave_group: leaves the ranks that this process was started with: memory is computed alone.
    """
    parts, task = runner.parts, runner.task
    run_cfg, length = parts.run_cfg, parts.length
    parts.check_splits([*run_cfg.train_splits, *run_cfg.valid_splits, *run_cfg.test_splits], task)
    batch = next(iter(parts.data.batches(Position())))
    is_first = ranks.rank() == 0
    leave_group()
    if not is_first:
        return ""
    images = _draw(batch, parts.folder / FIGURE)
    dtype = torch.float32 if parts.dtype == torch.float32 else None  # see `precision.compute_in_float32`
    encoder = getattr(model, "text_encoder", None)
    step = Step(
        model=Simulation().copy_of(model, [encoder], dtype),
        samples={**batch, "epoch": 0, "iters": 0, "num_iters_per_epoch": length.iters_per_epoch},
        loss=partial(_loss_of, task),
        autocast=partial(precision.autocast, torch.device("cpu"), parts.dtype),
        batches=int(run_cfg.accum_grad_iters),
        clipped=bool(run_cfg.max_grad_norm),
    )
    with encoded_texts(step.model) as encoded:
        memory = as_text(describe_peaks(step, run_cfg.sharding), terminal_width())
    rows = parameter_rows(getattr(step.model, "model", step.model))
    tokenizer = encoder.tokenizer if encoder is not None and encoded else None
    sections = {
        "configuration": OmegaConf.to_yaml(OmegaConf.create(without_secrets(parts.config.config))).rstrip(),
        "parameters": as_text(describe_parameters(rows), terminal_width()),
        "first batch": f"{describe_texts(batch, encoded[0] if encoded else None, tokenizer)}\n{images}",
        "memory": memory,
        "time": describe_time(length, _time(parts, step, model, load_model)),
    }
    return hide_secrets("\n\n".join(f"== {title}\n{text}" for title, text in sections.items()))


def _draw(batch: Mapping[str, Any], figure: Path) -> str:
    if batch.get("image") is None:
        return "the batch has no images"
    return (
        f"images: {figure}"
        if draw_images(batch, figure)
        else "images: not as pictures (features), so they are not drawn"
    )


def _loss_of(task: Any, model: nn.Module, samples: dict[str, Any]) -> Tensor:
    """Compute what a batch's backward pass begins with, as training does."""
    if offers(task, CountingTask):
        outputs = task.train_outputs(model=model, samples=samples)
        return outputs["loss"] * weight_of_loss(outputs)
    loss = task.train_step(model=model, samples=samples)
    return loss[0] if isinstance(loss, tuple) else loss


def _time(parts: Any, step: Step, model: nn.Module, load_model: Callable[[], nn.Module] | None) -> float | str:
    """Measure the seconds of a batch, or say why they are not."""
    if load_model is not None:
        model_cfg = parts.config.config.model
        names = [model_cfg.get(key) for key in ("language_model", "image_encoder", "folder", "weights")]
        if missing := [name for name in names if name and not _is_on_this_machine(name)]:
            return f"the weights of {' and '.join(missing)} are not on this machine"
        needed, there = sum(p.numel() * p.element_size() for p in step.model.parameters()), free_memory()
        if there is not None and needed > there / 2:
            return f"its weights take {needed / 1e9:.1f} GB, and {there / 1e9:.1f} GB of memory are free here"
        model = load_model()
    if parts.dtype == torch.float32:
        model = precision.compute_in_float32(model)
    model = model.to(parts.device).train()
    samples = move_batch(dict(step.samples), model, parts.device)

    def loss_of_batch() -> Tensor:
        with parts.autocast():
            return step.loss(model, dict(samples))

    return measure_seconds(model, loss_of_batch)


def _is_on_this_machine(name: str) -> bool:
    """Tell whether the weights of a model, by folder or hub name, can be read without fetching them."""
    if name.startswith("tiny:"):
        return True
    folder = Path(name).expanduser()
    if (folder / DESCRIPTION).is_file():
        return True
    kept = folder if folder.is_dir() else folder_of_hub(name)
    return kept is not None and bool(weight_files(kept))


def measure_seconds(model: nn.Module, loss_of_batch: Callable[[], Tensor]) -> float:
    """Measure the seconds of a batch's forward and backward pass; no weight changes.

    Args:
        model: whose gradients are thrown away.
        loss_of_batch: computes the loss.
    """
    loss_of_batch().backward()  # whatever is made once is made now
    began = time.perf_counter()
    loss_of_batch().backward()
    # A GPU works on while Python has gone ahead.
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    model.zero_grad(set_to_none=True)
    return seconds


def describe_time(length: RunLength, seconds_per_batch: float | str) -> str:
    """Say how long the run is, and how long it takes at the measured pace.

    Args:
        length: of the run.
        seconds_per_batch: as measured, or why they were not.
    """
    begin = (
        f"{length.max_epoch} epochs of {length.iters_per_epoch} batches, {length.total_iters} batches in all, "
        f"{length.steps_until(length.total_iters)} optimizer steps.\n  "
    )
    if isinstance(seconds_per_batch, str):
        return f"{begin}How long a batch takes was not measured: {seconds_per_batch}."
    total = length.total_iters * seconds_per_batch
    hours, rest = divmod(int(total), 3600)
    return (
        f"{begin}a batch takes {seconds_per_batch:.3f} s here, forward and backward: all of them "
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

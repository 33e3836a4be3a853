"""Pictures in tiles beside whole ones: image tokens, and what a training step takes of time and memory."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import results
from benchmarks.held import held_for_backward
from benchmarks.timing import in_turns
from gitllm_plugin.modeling import BuildSettings, LoraSettings, build_git_llm, make_text_encoder
from gitllm_plugin.modeling.places import stack_images
from gitllm_plugin.processors.image_transform import ImageTransform
from gitllm_plugin.tables import Table

_HEADER = ("`max_tiles`", "images", "image tokens", "time of a step", "held for the backward pass")
_ANSWER = "a wide picture of waves in many colours"
_SHAPES = ((600, 600), (640, 480), (480, 640), (900, 300))
"""Width and height of the pictures of a batch."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("--language-model", default="tiny:llama", help="name or folder")
    parser.add_argument("--image-encoder", default="tiny:clip", help="name or folder")
    parser.add_argument("--projection", default="linear_norm")
    parser.add_argument("--projection-factor", type=int, default=2)
    parser.add_argument("--image-size", type=int, default=None, help="of a tile; by default the encoder's")
    parser.add_argument("--tiles", type=int, nargs="+", default=[1, 2, 4, 6])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=results.FOLDER)


def run(arguments: argparse.Namespace) -> None:
    """Measure in turns with one thread, print the table and write it for the page."""
    torch.set_num_threads(1)
    settings = BuildSettings(
        projection=arguments.projection,
        projection_factor=arguments.projection_factor,
        tile_marks=True,
        dtype="float32",
        lora=LoraSettings(),
    )
    model, tokenizer = build_git_llm(arguments.language_model, arguments.image_encoder, settings)
    text = make_text_encoder(model.language_model, tokenizer).prompts_and_answers(["what is it?"] * 4, [_ANSWER] * 4)
    size = arguments.image_size or model.image_encoder.image_size or 224
    batches = {most: _images(size, most) for most in arguments.tiles}
    model.train()

    def step(most: int) -> None:
        pixels, places = batches[most]
        out = model(text.input_ids, text.attention_mask, pixels, text.labels, num_images=places, logits="none")
        out.loss.backward()  # type: ignore[union-attr]
        model.zero_grad()

    times = in_turns({str(most): lambda most=most: step(most) for most in batches}, arguments.rounds)
    first = statistics.median(times[str(arguments.tiles[0])].processor)
    held_first = held_for_backward(model, lambda: step(arguments.tiles[0]))
    rows = []
    for most, (pixels, places) in batches.items():
        images = int((places[:, :, 0] >= 0).sum()) / len(_SHAPES)
        seconds = statistics.median(times[str(most)].processor)
        held = held_for_backward(model, lambda most=most: step(most))
        tokens, told = images * model.tokens_of_image(pixels), f"{seconds / first:.2f}"
        told += f" ({seconds:.2f} s)" if not rows else ""
        rows.append((str(most), f"{images:.2f}", f"{tokens:.0f}", told, f"{held / held_first:.2f}"))
    table = Table(_HEADER, rows, numbers=(1, 2, 4))
    print(table.markdown())
    command = f"python -m benchmarks tiles {results.models_of(arguments)}"
    print(results.write_table("tiles", command, table, arguments.output))


def _images(size: int, most: int) -> tuple[Tensor, Tensor]:
    transform = ImageTransform(size, (0.5,) * 3, (0.5,) * 3, max_tiles=most)
    cut = [transform.tiles(_waves(*shape)) for shape in _SHAPES]
    places = [torch.nn.functional.pad(grid, (1, 0)) for _, grid in cut]
    pixels, stacked = stack_images([transform.normalize(tiles) for tiles, _ in cut], places)
    assert pixels is not None and stacked is not None
    return pixels, stacked


def _waves(width: int, height: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([127 + 120 * np.sin(x / 23), 127 + 120 * np.cos(y / 17), (x + y) % 256], -1).astype(np.uint8)

"""Training steps on a CPU: the article's way and ours, in turns, with equal losses and gradients.

``python -m benchmarks cpu``
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch

from benchmarks import results
from benchmarks.batches import random_batch
from benchmarks.equality import assert_equal, largest_differences
from benchmarks.flops import linear_gflop
from benchmarks.memory import peak_memory
from benchmarks.shapes import build
from benchmarks.timing import in_turns, ratio
from benchmarks.ways import ABLATION, FEATURES, OURS, WAYS, training_step


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``python -m benchmarks cpu``."""
    parser.add_argument("--shape", default="opt-350m", help="a key of benchmarks.shapes.SHAPES")
    parser.add_argument("--images", type=int, default=2, help="images of a batch with one text each")
    parser.add_argument("--images-of-five", type=int, default=1, help="images of a batch with five texts each")
    parser.add_argument("--ways", nargs="+", default=[*WAYS, FEATURES], choices=[*WAYS, *ABLATION], metavar="WAY")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-images", type=int, default=4, help="images with one text each, 0: do not measure it")
    parser.add_argument("--output", type=Path, default=results.FOLDER)


def run(arguments: argparse.Namespace) -> None:
    """Measure, write both files, print the page."""
    torch.set_num_threads(arguments.threads)
    found: dict[str, Any] = {"where": results.surroundings(), "shape": arguments.shape, "cases": []}
    for images, texts in ((arguments.images, 1), (arguments.images_of_five, 5)):
        found["cases"].append(measure(arguments, images, texts))
        results.write(f"cpu-{arguments.shape}", found, page(found), arguments.output)
    if arguments.memory_images:
        found["memory"] = measure_memory(arguments.shape, arguments.memory_images)
    path = results.write(f"cpu-{arguments.shape}", found, page(found), arguments.output)
    print(path.read_text())


def measure(arguments: argparse.Namespace, images: int, texts_per_image: int) -> dict[str, Any]:
    """Compare all ways on one batch.

    Raises:
        AssertionError: they compute different losses or gradients.
    """
    model = build(arguments.shape)
    batch = random_batch(model, images, texts_per_image)
    ways = {name: {**WAYS, **ABLATION}[name] for name in (*arguments.ways, OURS)}
    differences = largest_differences(model, ways, random_batch(model, 1, min(2, texts_per_image)))
    assert_equal(differences)
    steps = {name: training_step(model, make(model)) for name, make in ways.items()}
    functions = {name: lambda step=step: step(batch) for name, step in steps.items()}
    times = in_turns(functions, arguments.rounds)
    gflop = {name: linear_gflop(function) for name, function in functions.items()}  # features are there by now
    image_tokens = model.image_encoder.num_tokens(*batch.pixel_values.shape[-2:])
    case: dict[str, Any] = {
        "images": images,
        "texts_per_image": texts_per_image,
        "image_tokens": image_tokens,
        "real_tokens": batch.num_real_tokens(image_tokens),
        "supervised_tokens": batch.num_supervised,
        "ways": {},
    }
    del model, steps, functions
    for name, taken in times.items():
        case["ways"][name] = {
            **differences[name],
            "linear_gflop": round(gflop[name], 3),
            "wall_seconds": [round(second, 4) for second in taken.wall],
            "processor_seconds": [round(second, 4) for second in taken.processor],
            "samples_per_processor_second": batch.num_texts / statistics.median(taken.processor),
            "ours_is_faster_by_clock": str(ratio(taken.wall, times[OURS].wall)),
            "ours_is_faster": str(ratio(taken.processor, times[OURS].processor)),
        }
    return case


def measure_memory(shape: str, images: int) -> list[dict[str, Any]]:
    """Peak memory of one step of each way, with one text an image, and about as many texts with five."""
    cases = ((images, 1), (max(1, images // 5), 5))
    return [
        {
            "images": images,
            "texts_per_image": texts,
            "ways": {name: peak_memory(shape, name, images, texts) for name in WAYS},
        }
        for images, texts in cases
    ]


def page(found: dict[str, Any]) -> str:
    """Give the results as Markdown."""
    parts = [
        results.heading(f"Training on a CPU, {found['shape']}", found["where"]),
        "One training step (forward, backward, clipping, AdamW), float32, LoRA and projection trained, all ways in "
        "turns in one process. Others use the machine too, so times are seconds of the processor, which on one thread "
        "are those of the clock when it is idle; ratios are of the same round: median (least to most). Losses and "
        "gradients were compared before anything was timed, in float64. GFLOP are those of linear layers.\n",
        *[_times_table(case) for case in found["cases"]],
    ]
    if "memory" in found:
        parts.append(
            "## Peak memory\n\n"
            "One step in a process of its own: GiB of all of it, and beyond the weights and the libraries.\n"
        )
        parts += [_memory_table(case) for case in found["memory"]]
    return "\n".join(parts)


def _times_table(case: dict[str, Any]) -> str:
    header = [
        "way", "samples/s", "ours is faster by", "by the clock", "GFLOP", "GFLOP/s", "loss differs", "gradient differs",
    ]  # fmt: skip
    rows = [
        [
            name,
            f"{way['samples_per_processor_second']:.3f}",
            way["ours_is_faster"],
            way["ours_is_faster_by_clock"],
            f"{way['linear_gflop']:.4g}",
            f"{way['linear_gflop'] / statistics.median(way['processor_seconds']):.0f}",
            f"{way['loss_difference']:.0e}",
            f"{way['gradient_difference']:.0e}",
        ]
        for name, way in case["ways"].items()
    ]
    tokens = f"{case['real_tokens']} real tokens, {case['supervised_tokens']} of them trained on."
    return f"## {_title(case)}\n\n{tokens}\n\n{results.table(header, rows)}\n"


def _memory_table(case: dict[str, Any]) -> str:
    ours = case["ways"][OURS]["above_weights_gib"]
    rows = [
        [name, f"{way['peak_gib']:.2f}", f"{way['above_weights_gib']:.2f}", f"{way['above_weights_gib'] / ours:.2f}"]
        for name, way in case["ways"].items()
    ]
    header = ["way", "peak GiB", "beyond weights", "times as much as ours"]
    return f"{_title(case)}:\n\n{results.table(header, rows)}\n"


def _title(case: dict[str, Any]) -> str:
    images = f"{case['images']} image{'s' if case['images'] > 1 else ''}"
    return f"{images} with {case['texts_per_image']} text{'s' if case['texts_per_image'] > 1 else ''} each"

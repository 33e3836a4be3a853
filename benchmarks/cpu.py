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
from benchmarks.memory import peak_memory
from benchmarks.shapes import build
from benchmarks.timing import in_turns, ratio
from benchmarks.ways import OURS, WAYS, training_step

TOLERANCE = 1e-5
"""Of losses and gradients, relative to the largest; float32."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``python -m benchmarks cpu``."""
    parser.add_argument("--shape", default="opt-350m", help="a key of benchmarks.shapes.SHAPES")
    parser.add_argument("--images", type=int, default=4, help="images of a batch with one text each")
    parser.add_argument("--images-of-five", type=int, default=2, help="images of a batch with five texts each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="measure it too")
    parser.add_argument("--output", type=Path, default=results.FOLDER)


def run(arguments: argparse.Namespace) -> None:
    """Measure, write both files, print the page."""
    torch.set_num_threads(arguments.threads)
    found: dict[str, Any] = {"where": results.surroundings(), "shape": arguments.shape, "cases": []}
    for images, texts in ((arguments.images, 1), (arguments.images_of_five, 5)):
        found["cases"].append(measure(arguments, images, texts))
    path = results.write(f"cpu-{arguments.shape}", found, page(found), arguments.output)
    print(path.read_text())


def measure(arguments: argparse.Namespace, images: int, texts_per_image: int) -> dict[str, Any]:
    """Compare all ways on one batch.

    Raises:
        AssertionError: they compute different losses or gradients.
    """
    model = build(arguments.shape)
    batch = random_batch(model, images, texts_per_image)
    losses = {name: make(model) for name, make in WAYS.items()}
    differences = largest_differences(model, losses, batch)
    assert_equal(differences, TOLERANCE)
    steps = {name: training_step(model, loss) for name, loss in losses.items()}
    times = in_turns({name: lambda step=step: step(batch) for name, step in steps.items()}, arguments.rounds)
    image_tokens = model.image_encoder.num_tokens(*batch.pixel_values.shape[-2:])
    case: dict[str, Any] = {
        "images": images,
        "texts_per_image": texts_per_image,
        "image_tokens": image_tokens,
        "real_tokens": batch.num_real_tokens(image_tokens),
        "supervised_tokens": batch.num_supervised,
        "ways": {},
    }
    del model, losses, steps
    for name, taken in times.items():
        case["ways"][name] = {
            **differences[name],
            "wall_seconds": [round(second, 4) for second in taken.wall],
            "processor_seconds": [round(second, 4) for second in taken.processor],
            "samples_per_processor_second": batch.num_texts / statistics.median(taken.processor),
            "ours_is_faster_by_clock": str(ratio(taken.wall, times[OURS].wall)),
            "ours_is_faster": str(ratio(taken.processor, times[OURS].processor)),
        }
        if arguments.memory:
            case["ways"][name] |= peak_memory(arguments.shape, name, images, texts_per_image)
    return case


def page(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    parts = [
        results.heading(f"Training on a CPU, {found['shape']}", found["where"]),
        "One training step (forward, backward, clipping, AdamW), float32, LoRA and projection trained, all ways in "
        "turns in one process. Others use the machine too, so times are seconds of the processor, which on one thread "
        "are those of the clock when it is idle; ratios are of the same round: median (least to most). Losses and "
        "gradients were compared before anything was timed; memory is of a process of its own.\n",
    ]
    for case in found["cases"]:
        rows = [
            [
                name,
                f"{way['samples_per_processor_second']:.3f}",
                way["ours_is_faster"],
                way["ours_is_faster_by_clock"],
                *[f"{way[key]:.2f}" if key in way else "-" for key in ("peak_gib", "above_weights_gib")],
                f"{way['loss_difference']:.0e}",
                f"{way['gradient_difference']:.0e}",
            ]
            for name, way in case["ways"].items()
        ]
        parts.append(
            f"## {case['images']} images with {case['texts_per_image']} "
            f"text{'s' if case['texts_per_image'] > 1 else ''} each\n\n"
            f"{case['real_tokens']} real tokens, {case['supervised_tokens']} of them trained on.\n\n"
            + results.table(
                [
                    "way",
                    "samples/s",
                    "ours is faster by",
                    "by the clock",
                    "peak GiB",
                    "beyond weights",
                    "loss differs",
                    "gradient differs",
                ],
                rows,
            )
            + "\n"
        )
    return "\n".join(parts)

"""Features read from files beside images decoded and encoded: what each costs an image, and a training step with each.

Both ways read the same records of shards through ``m3it_wds``, in one process, from files that the system has in
memory. ``python -m benchmarks features``
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import results
from benchmarks.batches import random_batch
from benchmarks.shapes import build
from benchmarks.timing import in_turns, ratio
from benchmarks.ways import ours, training_step
from gitllm_plugin.modeling.pixels import normalize_pixels

IMAGES, FEATURES = "images", "features"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``python -m benchmarks features``."""
    parser.add_argument("--shape", default="opt-350m", help="a key of benchmarks.shapes.SHAPES")
    parser.add_argument("--photos", type=int, default=24, help="photographs of 640 x 480 in the shards")
    parser.add_argument("--images", type=int, default=2, help="images of a training step, with one text each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=results.FOLDER)


def run(arguments: argparse.Namespace) -> None:
    """Measure, write both files, print the page."""
    from benchmarks.data_path import write_data

    torch.set_num_threads(arguments.threads)
    found: dict[str, Any] = {"where": results.surroundings(), "shape": arguments.shape}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found["image_bytes"] = round(write_data(folder, arguments.photos))
        model = build(arguments.shape)
        streams = make_streams(folder, model)
        features = next(iter(streams[FEATURES]))["image"]
        found["feature_bytes"] = features.nbytes
        found |= measure(arguments, model, streams)
    path = results.write(f"features-{arguments.shape}", found, page(found), arguments.output)
    print(path.read_text())


def make_streams(folder: Path, model: Any) -> dict[str, Any]:
    """Give the training split with images, and with the features that are written here."""
    from omegaconf import OmegaConf

    from gitllm_plugin.datasets.builders.m3it_builder import M3ITWdsBuilder
    from gitllm_plugin.datasets.features import encode_shards

    def open_stream(**build_info: Any) -> Any:
        sizes = {"image_size": model.image_encoder.image_size}
        node = {"vis_processor": {"train": sizes}, "build_info": {"shards": str(folder / "shards"), **build_info}}
        return M3ITWdsBuilder(OmegaConf.create(node)).build_datasets()["train"]

    images = open_stream()
    encode_shards(model.image_encoder, images, folder / "features")
    return {IMAGES: images, FEATURES: open_stream(features=str(folder / "features"))}


def measure(arguments: argparse.Namespace, model: Any, streams: dict[str, Any]) -> dict[str, Any]:
    """Seconds of the processor and of the clock, of an image and of a training step."""
    items = {name: iter(stream) for name, stream in streams.items()}
    batch = random_batch(model, arguments.images, 1)
    step = training_step(model, lambda batch: ours(model, batch))

    def take(name: str, count: int) -> Tensor:
        collated = streams[name].collater(list(itertools.islice(items[name], count)))
        if name == FEATURES:
            return collated["image"]
        return normalize_pixels(collated["image"], collated["image_mean"], collated["image_std"])

    @torch.no_grad()
    def encode(name: str, count: int) -> Tensor:
        return model.image_encoder(take(name, count))

    def train(name: str, count: int) -> None:
        step(dataclasses.replace(batch, pixel_values=take(name, count)))

    parts: dict[str, tuple[Callable[[str, int], Any], int]] = {
        "read": (take, arguments.photos),
        "read and encode": (encode, arguments.photos),
        "training step": (train, arguments.images),
    }
    found: dict[str, Any] = {}
    for part, (function, count) in parts.items():
        calls = {name: lambda name=name, function=function, count=count: function(name, count) for name in streams}
        found[part] = {"count": count}
        times = in_turns(calls, arguments.rounds)
        for name, taken in times.items():
            found[part][name] = {"processor_seconds": taken.processor, "wall_seconds": taken.wall}
        faster = ratio(times[IMAGES].processor, times[FEATURES].processor)
        found[part]["times_as_fast"] = dataclasses.asdict(faster)
    return found


def page(found: dict[str, Any]) -> str:
    """Say what was found, as Markdown: best rounds, and the median, least and most of the rounds' ratios."""
    header = ["of an image", "images, ms", "features, ms", "times as fast", "from", "to"]
    rows = []
    for part in ("read", "read and encode", "training step"):
        case = found[part]
        best = [1000 * min(case[name]["processor_seconds"]) / case["count"] for name in (IMAGES, FEATURES)]
        faster = (f"{value:,.2f}" for value in case["times_as_fast"].values())
        rows.append([part, *(f"{milliseconds:,.2f}" for milliseconds in best), *faster])
    image, features = (f"{found[name] / 1000:,.0f} kB" for name in ("image_bytes", "feature_bytes"))
    return (
        results.heading(f"Features in the place of images, {found['shape']}", found["where"])
        + f"\nAn image file has {image}, its features {features}; milliseconds of the processor.\n\n"
        + results.table(header, rows)
    )

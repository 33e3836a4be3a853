"""From the file to pixel values: JSON lines, Pillow and CLIPImageProcessor beside shards and this package's loader.

Every way reads the same photographs in the size of COCO's and gives the same pixels, within a grey level (scaled
decoding: about one on average), in one process and one thread, in turns. Times are of the CPU, so that they mean the
same beside other programs. ``python -m benchmarks.data_path``.
"""

from __future__ import annotations

import argparse
import base64
import io
import itertools
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import gitllm_plugin

gitllm_plugin.register()

import skimage  # noqa: E402
from lavis.datasets.builders import load_dataset  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import CLIPImageProcessor  # noqa: E402
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil  # noqa: E402

from benchmarks import results  # noqa: E402
from benchmarks.timing import in_turns  # noqa: E402
from gitllm_plugin.m3it.prompts import build_prompt  # noqa: E402
from gitllm_plugin.m3it.shards.make import make_shards  # noqa: E402
from gitllm_plugin.m3it.shards.plan import Settings  # noqa: E402
from gitllm_plugin.m3it.tree import find_tree  # noqa: E402
from gitllm_plugin.modeling.pixels import normalize_pixels  # noqa: E402
from gitllm_plugin.tables import Table  # noqa: E402

PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "motorcycle_right.png", "rocket.jpg")
WIDTH, HEIGHT = 640, 480
INSTRUCTION = "Write a short description of the image."
BATCH = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the arguments of :func:`run`."""
    parser.add_argument("--rows", type=int, default=24, help="rows of each way in a round")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--output", type=Path, default=results.FOLDER)


def run(arguments: argparse.Namespace) -> None:
    """Measure, print a table, and write it for the page."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        size = write_data(Path(folder), arguments.rows)
        ways = make_ways(Path(folder))
        check_pixels(ways)
        times = in_turns({name: partial(exhaust, way) for name, way in ways.items()}, arguments.rounds)
    print(f"{arguments.rows} photographs of {WIDTH} x {HEIGHT}, {size / 1000:.0f} kB each; {arguments.rounds} rounds\n")
    table = make_table({name: taken.processor for name, taken in times.items()}, arguments.rows)
    print(table.markdown())
    print(results.write_table("data_path", "python -m benchmarks.data_path", table, arguments.output))


def write_data(folder: Path, rows: int) -> float:
    """Uniform JSON lines and shards of them; gives the mean size of an image file."""
    images = [make_photo(number) for number in range(rows)]
    path = folder / "tree" / "photos" / "train.jsonl"
    path.parent.mkdir(parents=True)
    with open(path, "w") as file:
        for number, image in enumerate(images):
            row = {
                "id": str(number),
                "instruction": INSTRUCTION,
                "inputs": "",
                "image_base64_str": [base64.b64encode(image).decode()],
                "outputs": f"A photograph, number {number}.",
            }
            file.write(json.dumps(row) + "\n")
    tree = find_tree(folder / "tree", ["photos"])
    make_shards(tree, folder / "shards", Settings(2**29))
    make_shards(tree, folder / "smaller", Settings(2**29, resize_short_side=256))
    return statistics.mean(map(len, images))


def make_photo(number: int) -> bytes:
    """Give a part of a photograph that comes with scikit-image, as a JPEG file; no two are alike."""
    picture = Image.open(Path(skimage.__file__).parent / "data" / PHOTOS[number % len(PHOTOS)]).convert("RGB")
    part = 0.98 ** (number // len(PHOTOS))
    width = part * min(picture.width, picture.height * WIDTH / HEIGHT)
    box = (0, 0, width, width * HEIGHT / WIDTH)
    buffer = io.BytesIO()
    picture.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS, box=box).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def make_ways(folder: Path) -> dict[str, Callable[[], Iterator[Any]]]:
    """Functions that each go through all rows once."""
    jsonl = folder / "tree" / "photos" / "train.jsonl"
    exact, scaled = (open_shards(folder / "shards", scaled_decode=choice) for choice in (False, True))
    smaller = open_shards(folder / "smaller")
    rows = OmegaConf.create({"datasets": {"m3it": node_of({"annotations": {"train": {"storage": str(jsonl)}}})}})
    OmegaConf.save(rows, folder / "rows.yaml")
    by_row = load_dataset("m3it", str(folder / "rows.yaml"))["train"]
    return {
        "JSON lines, Pillow, `CLIPImageProcessor` on Pillow (the article's)": lambda: read_plainly(
            jsonl, CLIPImageProcessorPil()
        ),
        "JSON lines, Pillow, `CLIPImageProcessor` on torchvision": lambda: read_plainly(jsonl, CLIPImageProcessor()),
        "`m3it`: JSON lines": lambda: in_batches(by_row[index] for index in range(len(by_row))),
        "`m3it_wds`": lambda: in_batches(take_epoch(exact)),
        "`m3it_wds`, `scaled_decode`": lambda: in_batches(take_epoch(scaled)),
        "`m3it_wds`, shards made with `--resize-short-side 256`": lambda: in_batches(take_epoch(smaller)),
        "`m3it_wds`, normalised on this CPU too": lambda: map(normalize, in_batches(take_epoch(exact))),
        "records of shards alone": lambda: read_records(exact),
        "rows of JSON lines alone": lambda: read_rows(jsonl),
    }


def node_of(build_info: dict, **processor: Any) -> dict:
    """Give the configuration of a data set."""
    vis = {"train": {"resize": "shortest_edge", **processor}}
    return {"vis_processor": vis, "build_info": build_info}


def open_shards(folder: Path, **processor: Any) -> Any:
    """Give the training split of a folder of shards."""
    node = node_of({"shards": str(folder)}, **processor)
    OmegaConf.save(OmegaConf.create({"datasets": {"m3it_wds": node}}), folder / "config.yaml")
    return load_dataset("m3it_wds", str(folder / "config.yaml"))["train"]


def read_plainly(jsonl: Path, processor: Any) -> Iterator[torch.Tensor]:
    """Give the way of the article: a row's image through Pillow and transformers, with its prompt."""
    for row in read_rows(jsonl):
        image = Image.open(io.BytesIO(base64.b64decode(row["image_base64_str"][0]))).convert("RGB")
        build_prompt("article", row["instruction"], row["inputs"])
        yield processor(image, return_tensors="pt")["pixel_values"][0]


def read_rows(jsonl: Path) -> Iterator[dict]:
    """Rows without their images' pixels."""
    with open(jsonl) as file:
        for line in file:
            yield json.loads(line)


def take_epoch(stream: Any) -> Iterator[dict]:
    """Give an epoch of a stream that has no end."""
    for item, _ in zip(stream, range(len(stream)), strict=False):
        yield item


def in_batches(items: Iterator[dict]) -> Iterator[dict]:
    """Batches as a loader gives them: images in bytes."""
    from gitllm_plugin.datasets.collate import collate_groups

    while batch := list(itertools.islice(items, BATCH)):
        yield collate_groups(batch)


def normalize(batch: dict) -> torch.Tensor:
    """Say what is left for the device to do."""
    return normalize_pixels(batch["image"], batch["image_mean"], batch["image_std"])


def read_records(stream: Any) -> Iterator[Any]:
    """Records in the order of training: bytes of image files, and texts."""
    for place in range(len(stream.table)):
        yield stream.folder.read(stream.table[stream.order.item_at(place)])


def check_pixels(ways: dict[str, Callable[[], Iterator[Any]]]) -> None:
    """Say how far the pictures that the ways give are from those of the first."""
    pictures = {}
    for name, way in ways.items():
        if "alone" not in name:
            batches = [
                normalize(found) if isinstance(found, dict) else found.reshape(-1, 3, 224, 224) for found in way()
            ]
            pictures[name] = torch.stack(sorted(torch.cat(batches), key=lambda picture: float(picture.double().sum())))
    first, *others = pictures.items()
    std = torch.tensor(CLIPImageProcessor().image_std).view(3, 1, 1)
    for name, pixels in others:
        levels = ((pixels - first[1]) * std * 255).abs()
        print(f"{name}: {float(levels.max()):.2f} grey levels at most, {float(levels.mean()):.3f} on average")
    print()


def exhaust(way: Callable[[], Iterator[Any]]) -> None:
    """Go through all rows."""
    for _ in way():
        pass


def make_table(seconds: Mapping[str, Sequence[float]], rows: int) -> Table:
    """Rows per second, and how many times the first way's that is: of the best rounds, and the median of all rounds."""
    header = ("", "rows per CPU second", "times the article's", "median")
    first = next(iter(seconds.values()))
    lines = []
    for name, times in seconds.items():
        median = statistics.median(slow / fast for slow, fast in zip(first, times, strict=True))
        factors = ("", "") if name.endswith("alone") else (f"{min(first) / min(times):.2f}", f"{median:.2f}")
        lines.append((name, f"{rows / min(times):,.0f}", *factors))
    return Table(header, lines, numbers=(1, 2, 3))


if __name__ == "__main__":
    main = argparse.ArgumentParser(description=__doc__)
    add_arguments(main)
    run(main.parse_args())

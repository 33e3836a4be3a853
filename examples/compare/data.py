"""Made pictures with captions, in the form of COCO's, read by LAVIS's own builder."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from PIL import Image, ImageDraw

COLORS = ("red", "green", "blue", "yellow", "black", "white", "brown", "purple")
SHAPES = ("circle", "square", "triangle")
SIDES = ("left", "right")
_SIZE = 64


def write_data(folder: Path, counts: Mapping[str, int], seed: int) -> None:
    """Write pictures of a coloured shape on each side, and a caption of each: "a red circle left of a blue square".

    Args:
        folder: gets ``SPLIT.json`` and ``images/``.
        counts: split -> pictures.
        seed: of what is drawn. No pair of shapes of one split is in another.
    """
    draw = random.Random(seed)
    things = [f"{color} {shape}" for color in COLORS for shape in SHAPES]
    pairs = [(left, right) for left in things for right in things]
    draw.shuffle(pairs)
    share = len(pairs) // 4
    of_split = {"train": pairs[share:], "test": pairs[:share]}
    (folder / "images").mkdir(parents=True)
    for split, count in counts.items():
        rows = []
        for number in range(count):
            pair = draw.choice(of_split[split])
            name = f"{split}_{number}.png"
            _picture(pair, draw).save(folder / "images" / name)
            rows.append({"image": name, "image_id": name, "caption": f"a {pair[0]} left of a {pair[1]}"})
        (folder / f"{split}.json").write_text(json.dumps(rows))


def _picture(pair: tuple[str, str], draw: random.Random) -> Image.Image:
    image = Image.new("RGB", (_SIZE, _SIZE), "gray")
    canvas = ImageDraw.Draw(image)
    for side, thing in enumerate(pair):
        color, shape = thing.split()
        radius = draw.randint(8, 13)
        x = side * _SIZE // 2 + draw.randint(radius, _SIZE // 2 - radius)
        y = draw.randint(radius, _SIZE - radius)
        box = (x - radius, y - radius, x + radius, y + radius)
        if shape == "circle":
            canvas.ellipse(box, fill=color)
        elif shape == "square":
            canvas.rectangle(box, fill=color)
        else:
            canvas.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=color)
    return image


def read_data(folder: Path, image_size: int, text_processor: Mapping[str, Any]) -> Any:
    """Build LAVIS's ``coco_caption`` of the folder.

    Args:
        folder: of :func:`write_data`.
        image_size: pixels; images are resized and normalised alike in training and test.
        text_processor: name and settings.

    Returns:
        LAVIS's data set of the training, with its collater.
    """
    from lavis.common.registry import registry

    path = str(folder / "train.json")
    images = {"name": "blip_image_eval", "image_size": image_size}
    config = {
        "data_type": "images",
        "vis_processor": {"train": images, "eval": images},
        "text_processor": {"train": dict(text_processor), "eval": dict(text_processor)},
        "build_info": {
            "images": {"storage": str(folder / "images")},
            "annotations": {"train": {"url": path, "storage": path}},
        },
    }
    builder: Any = registry.get_builder_class("coco_caption")
    return builder(OmegaConf.create(config)).build_datasets()["train"]

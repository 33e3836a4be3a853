"""The demonstration's picture: test images with question, answer and truth."""

import base64
import io
import random
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # writes files; needs no display

import matplotlib.pyplot as plt  # noqa: E402 - after the choice of the backend
from PIL import Image  # noqa: E402

SEED = 42
COLUMNS = 4
PER_CONFIG = {"caption": 5, "open": 7, "yesno": 4}
RIGHT, WRONG = "tab:green", "tab:red"


def choose_examples(examples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Sixteen examples drawn at random (not picked by hand), some of each configuration."""
    generator = random.Random(SEED)
    chosen = []
    for config, count in PER_CONFIG.items():
        members = [example for example in examples if example["config"] == config]
        chosen += generator.sample(members, min(count, len(members)))
    return chosen


def draw_predictions(examples: Sequence[Mapping[str, Any]], images: Mapping[str, str], path: Path) -> None:
    """Draw images with question, answer and truth; right answers green, wrong ones red.

    Args:
        examples: with ``instance_id``, ``config``, ``question``, ``prediction``, ``references``, ``exact_match``.
        images: base64 text of the picture by ``instance_id``.
        path: the PNG to write.
    """
    rows = -(-len(examples) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(2.8 * COLUMNS, 3.8 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, example in zip(axes.flat, examples, strict=False):
        picture = Image.open(io.BytesIO(base64.b64decode(images[example["instance_id"]])))
        axis.imshow(picture.convert("RGB"), interpolation="nearest")
        axis.set_title(textwrap.fill(example["question"] or "Describe the picture.", 30), fontsize=9)
        color = RIGHT if example["exact_match"] else WRONG
        axis.text(0.5, -0.05, f"answer: {_one_line(example['prediction'])}", color=color, **_below(axis))
        axis.text(0.5, -0.15, f"truth: {example['references'][0]}", color="black", **_below(axis))
    figure.tight_layout(h_pad=4)  # tight_layout does not see the two lines below a picture
    figure.savefig(path, dpi=100, bbox_inches="tight")
    plt.close(figure)


def _below(axis: Any) -> dict[str, Any]:
    return {"transform": axis.transAxes, "ha": "center", "va": "top", "fontsize": 9, "parse_math": False}


def _one_line(text: str) -> str:
    """Give an answer of an untrained model can have several lines."""
    return textwrap.shorten(text, 36, placeholder=" ...")

"""A page to look at: pictures with prompt, prediction and references, in one HTML file."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from gitllm_plugin.common.files import write_atomically
from gitllm_plugin.m3it.images import decode_image
from gitllm_plugin.protocols import NumberedData, offers

_SIDE = 320  # pixels of a picture's longer side
_STYLE = """
body { font: 15px/1.4 sans-serif; margin: 2em; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 1.5em; }
figure { margin: 0; padding: 1em; border: 1px solid #ccc; border-radius: 6px; }
img { max-width: 100%; }
dt { color: #666; margin-top: .5em; } dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.prediction { font-weight: bold; }
"""


@dataclass(frozen=True)
class Shown:
    """An example and its pictures.

    Attributes:
        example: as in the file of predictions, scores included.
        pictures: in order; none for text alone.
    """

    example: Mapping[str, Any]
    pictures: Sequence[Image.Image]


def choose_examples(dataset: Any, examples: Sequence[Mapping[str, Any]], count: int = 32) -> list[Shown]:
    """Choose examples at equal distances through the data set, with their pictures.

    Args:
        dataset: nothing is chosen of one that is no :class:`~gitllm_plugin.protocols.NumberedData`, such as a stream.
        examples: the evaluated ones.
        count: how many, at most.
    """
    if not offers(dataset, NumberedData):
        return []
    rows = dataset.examples
    by_id = {(str(example["config"]), str(example["instance_id"])): example for example in examples}
    count = min(count, len(rows))
    places = [round(step * (len(rows) - 1) / max(count - 1, 1)) for step in range(count)]
    shown = []
    for place in places:
        group = rows[place]
        (text,) = group.texts
        example = by_id.get((text.config, text.id))
        if example is not None:
            where = f"example {text.id!r} at {rows.place_of(place)}"
            shown.append(Shown(example, [decode_image(image, where) for image in group.images]))
    return shown


def write_picture_page(path: Path, title: str, shown: Sequence[Shown]) -> None:
    """Write the page; it needs no other file and loads nothing."""
    figures = "\n".join(_figure(entry) for entry in shown)
    write_atomically(
        path,
        f'<!DOCTYPE html>\n<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style>\n<h1>{html.escape(title)}</h1>\n<main>\n{figures}\n</main></html>\n",
    )


def _figure(entry: Shown) -> str:
    example = entry.example
    known = {"instance_id", "config", "question", "prompt", "prediction", "references"}
    scores = ", ".join(f"{name} {value:.2f}" for name, value in example.items() if name not in known)
    rows = {
        "prompt": example["prompt"],
        "prediction": example["prediction"],
        "references": "\n".join(example["references"]),
        "scores": scores,
    }
    texts = "".join(
        f'<dt>{name}</dt><dd class="{name}">{html.escape(str(text))}</dd>' for name, text in rows.items() if text
    )
    pictures = "".join(f'<img alt="" src="{_data_url(picture)}">' for picture in entry.pictures)
    name = html.escape(f"{example['config']} · {example['instance_id']}")
    return f"<figure>{pictures}<figcaption>{name}</figcaption><dl>{texts}</dl></figure>"


def _data_url(picture: Image.Image) -> str:
    # A page of originals would be too large to open.
    small = picture.copy()
    small.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")

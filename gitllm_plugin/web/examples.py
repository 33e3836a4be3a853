"""Examples of the page: questions that the model was trained on, else shapes and photographs."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw

from gitllm_plugin.errors import DataError
from gitllm_plugin.inference.asking import Question
from gitllm_plugin.m3it.pictures import read_pixels

_PHOTOS = ("chelsea.png", "coffee.png", "rocket.jpg")


def write_examples(folder: Path, trained: Sequence[Question] = ()) -> list[tuple[list[str], str, str | None]]:
    """Write the pictures into a folder.

    Args:
        folder: is there.
        trained: questions that the model was trained to answer; where there are none, shapes and photographs.

    Returns:
        Files, question and instruction of each.
    """
    written = []
    for number, question in enumerate(trained):
        try:
            pictures = [Image.fromarray(read_pixels(picture)) for picture in question.pictures]
        except DataError:  # one example less
            continue
        files = [folder / f"example {number + 1}.{place + 1}.png" for place in range(len(pictures))]
        for picture, file in zip(pictures, files, strict=True):
            picture.save(file)
        written.append(([str(file) for file in files], question.text, question.instruction))
    return written or _generic(folder)


def _generic(folder: Path) -> list[tuple[list[str], str, str | None]]:
    shapes = [
        (_draw("circle", "teal"), "circle.png", "what is the color of the circle?"),
        (_draw("rectangle", "brown"), "rectangle.png", "what shape is in the image?"),
        (_draw("triangle", "red"), "triangle.png", ""),
    ]
    for picture, name, _ in shapes:
        picture.save(folder / name)
    files = [(folder / name, question) for _, name, question in shapes]
    files += [(photo, "what is in the picture?") for photo in _photos()]
    return [([str(file)], question, None) for file, question in files]


def _draw(shape: str, color: str) -> Image.Image:
    picture = Image.new("RGB", (256, 256), (232, 236, 245))
    draw = ImageDraw.Draw(picture)
    if shape == "circle":
        draw.ellipse((70, 50, 190, 170), fill=color)
    elif shape == "rectangle":
        draw.rectangle((60, 90, 200, 180), fill=color)
    else:
        draw.polygon([(128, 50), (60, 190), (196, 190)], fill=color)
    return picture


def _photos() -> list[Path]:
    """Find those that came with scikit-image; none is fetched."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        return []
    folder = Path(spec.origin).parent / "data"
    return [folder / name for name in _PHOTOS if (folder / name).is_file()]

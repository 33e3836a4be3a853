"""Example pictures: shapes that are drawn here, and photographs of scikit-image where it is installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw

_PHOTOS = ("chelsea.png", "coffee.png", "rocket.jpg")


def write_examples(folder: Path) -> list[tuple[str, str]]:
    """Write the pictures into a folder; gives path and question of each."""
    shapes = [
        (_draw("circle", "teal"), "circle.png", "what is the color of the circle?"),
        (_draw("rectangle", "brown"), "rectangle.png", "what shape is in the image?"),
        (_draw("triangle", "red"), "triangle.png", ""),
    ]
    for picture, name, _ in shapes:
        picture.save(folder / name)
    photos = [(str(path), "what is in the picture?") for path in _photos()]
    return [(str(folder / name), question) for _, name, question in shapes] + photos


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

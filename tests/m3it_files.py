"""Makes small M3IT files with real pictures, for any test that needs data.

The data can be learned: each picture is a square of one colour on a grey ground, the question asks for it.
"""

import base64
import io
import json
import random
from pathlib import Path

from PIL import Image

COLORS = {
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (40, 60, 220),
    "yellow": (240, 220, 40),
}
IMAGE_SIZE = 32


def encode(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, format=file_format, **options)
    return buffer.getvalue()


def encode_png(image: Image.Image) -> str:
    """An image as base64 text of a PNG file."""
    return base64.b64encode(encode(image)).decode("ascii")


def make_square(color: str, generator: random.Random) -> Image.Image:
    """A square of the colour at a random place on a grey ground, so that no two pictures are alike."""
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), (128, 128, generator.randrange(120, 136)))
    left, top = generator.randrange(4, 13), generator.randrange(4, 13)
    image.paste(COLORS[color], (left, top, left + 16, top + 16))
    return image


def write_m3it_jsonl(
    path: str | Path,
    rows: int = 8,
    *,
    config: str = "toy",
    images_per_row: int = 1,
    texts_per_image: int = 1,
    seed: int = 0,
) -> list[dict]:
    """Writes a uniform M3IT file and returns its rows.

    Args:
        path: the file to write; its folder is made.
        rows: number of rows.
        config: the ``config`` of every row; also the start of its ``id``.
        images_per_row: pictures in a row, all of one colour; 0 for text only.
        texts_per_image: how many rows in a sequence show the same pictures, each with its own wording.
        seed: of colours and pictures.
    """
    generator = random.Random(seed)
    written, color, images = [], "", []
    for index in range(rows):
        text = index % texts_per_image
        if text == 0:
            color = generator.choice(sorted(COLORS))
            images = [encode_png(make_square(color, generator)) for _ in range(images_per_row)]
        question = "what color is the square?" if text == 0 else f"what color is the square, time {text + 1}?"
        written.append(
            {
                "id": f"{config}-{seed}-{index}",
                "config": config,
                "instruction": "Answer the question about the image.",
                "inputs": question,
                "image_base64_str": images[0] if images_per_row == 1 else images,
                "outputs": color,
            }
        )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in written), encoding="utf-8")
    return written

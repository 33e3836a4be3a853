"""A miniature easy-VQA in the original's format, made on the spot."""

import json
from pathlib import Path

import pytest
from PIL import Image

COLORS = ("red", "green", "blue", "gray")
SHAPES = ("rectangle", "circle", "triangle")


def write_split(folder: Path, num_images: int) -> None:
    """Pictures 0 to `num_images` - 1; of every fifth one, only the shape is asked."""
    (folder / "images").mkdir(parents=True)
    questions = []
    for image in range(num_images):
        color, shape = COLORS[image % len(COLORS)], SHAPES[image % len(SHAPES)]
        # A pixel that no other picture has tells pictures apart.
        picture = Image.new("RGB", (8, 8), color)
        picture.putpixel((0, 0), (image, 0, 0))
        picture.save(folder / "images" / f"{image}.png")
        if image % 5 == 4:
            questions.append(["what shape is present?", shape, image])
        elif image % 2:
            questions.append([f"what is the color of the {shape}?", color, image])
        else:
            questions.append([f"what is the {color} shape?", shape, image])
        questions.append(["is there a circle?", "yes" if shape == "circle" else "no", image])
    (folder / "questions.json").write_text(json.dumps(questions))


@pytest.fixture
def easy_vqa(tmp_path) -> Path:
    """The folder `data` of easy-VQA: 30 train and 20 test pictures."""
    write_split(tmp_path / "easy_vqa" / "data" / "train", 30)
    write_split(tmp_path / "easy_vqa" / "data" / "test", 20)
    return tmp_path / "easy_vqa" / "data"

"""The page of results: a table, pictures with answers good and bad, photographs."""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageOps

from examples.easyvqa.data import read_rows
from examples.things.pictures import SIZE
from examples.things.rows import SEED, TESTS, WHAT
from examples.things.scores import Score
from examples.things.sources import SOURCES
from gitllm_plugin.inference.asking import Decoding
from gitllm_plugin.inference.pipeline import Pipeline
from gitllm_plugin.m3it.pictures import open_picture
from gitllm_plugin.tables import Table

PAGE, ANSWERS, PHOTOGRAPHS = "README.md", "answers.png", "photographs.png"
NAMES = {
    "thing": "name: new drawings of known things",
    "known_thing": "the same, ranked among 100 by three looks",
    "new_thing": "name: things never trained on, ranked so",
    "kind": "kind, of eight: new drawings",
    "yesno": "yes or no: new drawings",
    "person": "deed, gender and skin: new combinations",
    "count": "how many, one to five: new drawings",
}
_OF_PHOTOGRAPHS = (
    f"![Photographs of scikit-image, and what is answered]({PHOTOGRAPHS})",
    "All pictures of scikit-image that are installed; nothing like them was trained on.",
)
_EACH, _WIDE, _LINE = 4, 4, 13


def table(scores: Sequence[Score]) -> str:
    """Give the results as a Markdown table."""
    header = ("test", "pictures", "right", "chance", "blind", "shuffled")
    rows = [
        (NAMES[s.test], f"{s.examples:,}", *(f"{value:.1%}" for value in (s.right, s.chance, s.blind, s.shuffled)))
        for s in scores
    ]
    return Table(header, rows, numbers=range(1, len(header))).markdown()


def write_page(scores: Sequence[Score], rows: Path, output: Path, pipeline: Pipeline) -> str:
    """Write page and pictures; gives the table.

    Args:
        scores: of all tests.
        rows: the folder of ``make_data``.
        output: where the answers lie already.
        pipeline: the trained model.
    """
    _draw(_drawn_examples(rows, output), output / ANSWERS)
    photographs = _photographs()
    if photographs:
        answers = [pipeline.answer(path, WHAT, "", Decoding(max_new_tokens=16)) for path in photographs]
        shown = [(open_picture(path), answer, path.stem) for path, answer in zip(photographs, answers, strict=True)]
        _draw(shown, output / PHOTOGRAPHS)
    licences = [f"- {source.name}: {source.what}, {source.license}" for source in SOURCES]
    page = [
        "# Pictures of things",
        "SmolLM2-135M-Instruct, frozen, and EfficientNet-Lite0, whose later stages learnt the drawings' names before; "
        "trained are a projection and LoRA.",
        table(scores),
        "*Chance*: one of the answers at random. *Blind*: the best guess from the question alone. *Shuffled*: the same "
        "questions about other pictures.",
        f"![Test pictures, the answer, and the truth in brackets]({ANSWERS})",
        "Four of each test, drawn by a fixed seed.",
        *(_OF_PHOTOGRAPHS if photographs else ()),
        "## Pictures\n\n" + "\n".join(licences),
    ]
    (output / PAGE).write_text("\n\n".join(page) + "\n", encoding="utf-8")
    return table(scores)


def _drawn_examples(rows: Path, output: Path) -> list[tuple[Image.Image, str, str]]:
    rng = random.Random(SEED)
    examples = []
    for test in TESTS:
        answers = json.loads((output / f"{test}.json").read_text(encoding="utf-8"))["answers"]
        pictures = {row["id"]: row["image_base64_str"] for row in read_rows(rows / "test" / f"{test}.jsonl")}
        for answer in rng.sample(answers, min(_EACH, len(answers))):
            examples.append((_decoded(pictures[answer["id"]]), _said(answer), answer["outputs"]))
    return examples


def _said(answer: Mapping[str, Any]) -> str:
    return f"{answer['inputs']} {answer['answer']}"


def _decoded(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")


def _draw(shown: Sequence[tuple[Image.Image, str, str]], path: Path) -> None:
    """Draw pictures in rows, each with what was answered and, in brackets, the truth."""
    width, height = SIZE * 2, SIZE + 4 * _LINE
    page = Image.new("RGB", (_WIDE * width, -(-len(shown) // _WIDE) * height), "white")
    draw = ImageDraw.Draw(page)
    for number, (picture, said, truth) in enumerate(shown):
        left, top = number % _WIDE * width, number // _WIDE * height
        page.paste(ImageOps.contain(picture.convert("RGB"), (SIZE, SIZE)), (left + SIZE // 2, top))
        right = said.strip().lower().endswith(truth.lower())
        lines = [said[:40], said[40:80], f"({truth})"]
        for line, text in enumerate(filter(None, lines)):
            colour = "gray" if text == lines[-1] else "green" if right else "firebrick"
            draw.text((left + 8, top + SIZE + line * _LINE), text, fill=colour)
    page.save(path)


def _photographs() -> list[Path]:
    """Find scikit-image's photographs, where it is installed."""
    spec = find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        return []
    folder = Path(spec.submodule_search_locations[0]) / "data"
    found = []
    for path in sorted([*folder.glob("*.png"), *folder.glob("*.jp*g")]):
        with Image.open(path) as image:
            if image.mode == "RGB" and min(image.size) >= SIZE:
                found.append(path)
    return found

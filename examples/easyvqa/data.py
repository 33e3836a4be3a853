"""easy-VQA as uniform M3IT JSONL: captions, open questions, yes/no questions."""

import base64
import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from examples.easyvqa.errors import DemoError
from examples.easyvqa.folders import replaced_folder

COLORS = ("red", "green", "blue", "gray", "yellow", "teal", "black", "brown")
SHAPES = ("rectangle", "circle", "triangle")
CONFIGS = ("caption", "open", "yesno")
SHUFFLED = "_shuffled"
"""Ends the names of the configurations in which every picture belongs to another example."""

SHORT = "train_short"
"""The part of the train split that the demonstration trains on."""

YESNO_SAMPLE = "test_sample"
"""The yes/no questions that the demonstration evaluates: those about every fourth test picture."""

SEED = 42
YESNO_TEST_EVERY = 4
OPEN_EVERY, YESNO_EVERY = 2, 4
VAL_IMAGES = 150
SHUFFLED_IMAGES = 100

Row = dict[str, str]


class Question(NamedTuple):
    """A line of easy-VQA's ``questions.json``."""

    text: str
    answer: str
    image: int


def convert(source: Path, target: Path, val_images: int = VAL_IMAGES, shuffled_images: int = SHUFFLED_IMAGES) -> None:
    """Write ``{train,train_short,val,test}/{caption,open,yesno}.jsonl``, ``test_sample/yesno.jsonl`` and the control
    ``test_shuffled/{caption,open}_shuffled.jsonl``.

    Args:
        source: easy-VQA's folder ``data``, with ``{train,test}/questions.json`` and ``{train,test}/images/*.png``.
        target: the folder to make; it appears only when it is complete.
        val_images: how many train pictures become the validation split, with all their texts.
        shuffled_images: how many test pictures the control has.

    Raises:
        DemoError: a file of easy-VQA is missing.
    """
    with replaced_folder(target) as folder:
        train = read_questions(source / "train")
        val = set(choose_images(train, val_images))
        rows = make_rows([question for question in train if question.image not in val])
        _write_split(folder / "train", rows, source / "train")
        _write_split(folder / SHORT, choose_short_course(rows), source / "train")
        _write_split(folder / "val", make_rows([q for q in train if q.image in val]), source / "train")
        test = read_questions(source / "test")
        rows = make_rows(test)
        _write_split(folder / "test", rows, source / "test")
        sample = [(image, row) for image, row in rows["yesno"] if image % YESNO_TEST_EVERY == 0]
        _write_split(folder / YESNO_SAMPLE, {"yesno": sample}, source / "test")
        _write_shuffled(folder / "test_shuffled", test, source / "test", shuffled_images)


def read_questions(split: Path) -> list[Question]:
    """Give the questions of a split.

    Raises:
        DemoError: the file is missing.
    """
    try:
        return [Question(*entry) for entry in json.loads((split / "questions.json").read_text())]
    except FileNotFoundError as error:
        raise DemoError(f"easy-VQA is incomplete: there is no {error.filename}; delete its folder") from error


def choose_images(questions: Iterable[Question], count: int) -> list[int]:
    """Pictures drawn at random, always the same ones."""
    return random.Random(SEED).sample(sorted({question.image for question in questions}), count)


def describe_images(questions: Iterable[Question]) -> dict[int, str]:
    """Captions, such as ``a teal rectangle``, of the pictures whose colour and shape the questions both give.

    A picture has one object. Its colour or shape is the answer to a question or part of one ("what is the
    color of the triangle?"); of some pictures only one of the two is asked.
    """
    colors: dict[int, str] = {}
    shapes: dict[int, str] = {}
    for text, answer, image in questions:
        if answer in COLORS:
            colors[image] = answer
            _note_named(shapes, image, SHAPES, text)
        elif answer in SHAPES:
            shapes[image] = answer
            _note_named(colors, image, COLORS, text)
    return {image: f"a {colors[image]} {shapes[image]}" for image in sorted(colors) if image in shapes}


def _note_named(facts: dict[int, str], image: int, words: Iterable[str], question: str) -> None:
    for word in words:
        if word in question:
            facts[image] = word


def make_rows(questions: Sequence[Question]) -> dict[str, list[tuple[int, Row]]]:
    """Pictures and their rows, without the picture itself, by configuration."""
    rows: dict[str, list[tuple[int, Row]]] = {config: [] for config in CONFIGS}
    for image, caption in describe_images(questions).items():
        rows["caption"].append((image, _row("caption", f"{image}", "Describe the picture.", "", caption)))
    asked: dict[int, int] = defaultdict(int)
    for text, answer, image in questions:
        config = "yesno" if answer in ("yes", "no") else "open"
        asked[image] += 1
        rows[config].append((image, _row(config, f"{image}-{asked[image]}", "", text, answer)))
    return rows


def choose_short_course(rows: Mapping[str, Sequence[tuple[int, Row]]]) -> dict[str, list[tuple[int, Row]]]:
    """Say what two CPU cores learn most from in minutes: many pictures, few texts about each.

    Of each picture the caption (two open questions where there is none), of every second one open question and of
    every fourth one yes/no question besides. A caption tells both colour and shape; a question about the same
    picture adds little.
    """
    rng = random.Random(SEED)
    captioned = {image for image, _ in rows["caption"]}

    def draw(config: str, number: Callable[[int], int]) -> list[tuple[int, Row]]:
        by_image: dict[int, list[Row]] = defaultdict(list)
        for image, row in rows[config]:
            by_image[image].append(row)
        return [
            (image, row) for image, mine in by_image.items() for row in rng.sample(mine, min(number(image), len(mine)))
        ]

    return {
        "caption": list(rows["caption"]),
        "open": draw("open", lambda image: int(image % OPEN_EVERY == 0) if image in captioned else 2),
        "yesno": draw("yesno", lambda image: int(image % YESNO_EVERY == 0)),
    }


def _row(config: str, number: str, instruction: str, question: str, answer: str) -> Row:
    return {
        "id": f"{config}-{number}",
        "config": config,
        "instruction": instruction,
        "inputs": question,
        "outputs": answer,
    }


def _write_split(folder: Path, rows: Mapping[str, Sequence[tuple[int, Row]]], source: Path) -> None:
    folder.mkdir()
    pictures = _read_pictures(source, {image for mine in rows.values() for image, _ in mine})
    for config, mine in rows.items():
        write_rows(folder / f"{config}.jsonl", [{**row, "image_base64_str": pictures[image]} for image, row in mine])


def _write_shuffled(folder: Path, questions: Sequence[Question], source: Path, count: int) -> None:
    """Captions and open questions of some pictures, each with the picture of another one of them.

    It measures what a model gets right without seeing the picture that is asked about. Nothing hinders two
    pictures from showing the same thing: chance is part of the control.
    """
    folder.mkdir()
    chosen = choose_images(questions, count)  # in random order: the next one is a random other one
    other = dict(zip(chosen, [*chosen[1:], chosen[0]], strict=True))
    pictures = _read_pictures(source, chosen)
    by_config = make_rows([question for question in questions if question.image in other])
    for config in ("caption", "open"):
        name = config + SHUFFLED
        rows = [{**row, "config": name, "id": f"shuffled-{row['id']}"} for _, row in by_config[config]]
        images = [pictures[other[image]] for image, _ in by_config[config]]
        pairs = zip(rows, images, strict=True)
        write_rows(folder / f"{name}.jsonl", [{**row, "image_base64_str": image} for row, image in pairs])


def _read_pictures(source: Path, images: Iterable[int]) -> dict[int, str]:
    """PNG files, as they are, as base64 text."""
    try:
        return {
            image: base64.b64encode((source / "images" / f"{image}.png").read_bytes()).decode("ascii")
            for image in images
        }
    except FileNotFoundError as error:
        raise DemoError(f"easy-VQA is incomplete: there is no {error.filename}; delete its folder") from error


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSONL."""
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def read_rows(path: Path) -> list[Row]:
    """Give the rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def count_rows(folder: Path) -> dict[str, dict[str, int]]:
    """Give the number of rows by split and configuration, for messages."""
    counts: dict[str, dict[str, int]] = {}
    for path in sorted(folder.glob("*/*.jsonl")):
        counts.setdefault(path.parent.name, {})[path.stem] = len(read_rows(path))
    return counts

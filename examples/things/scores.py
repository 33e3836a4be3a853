"""Asks a trained model what it was never shown, beside chance, the blind guess and other pictures."""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from examples.easyvqa.controls import score_best_guesses
from examples.easyvqa.data import Row, read_rows
from examples.things.data import NAMES
from examples.things.rows import SEED, TESTS, WHAT
from gitllm_plugin.inference.asking import Decoding, Question
from gitllm_plugin.inference.pipeline import Pipeline

SCORES = "scores.json"
RANKED = ("known_thing", "new_thing")
"""The tests in which names are ranked; in the others answers are written and compared as a whole."""

NUM_RANKED = 100

DISTANCES = (1.0, 0.85, 1.15)
"""From which a picture is looked at where names are ranked."""

_BATCH = 16


@dataclass(frozen=True)
class Score:
    """A test's result; parts of 1.

    Attributes:
        test: of :data:`~examples.things.rows.TESTS`.
        examples: how many.
        right: answers that are the truth.
        chance: of one of the possible answers at random.
        blind: the best guess from the question alone, learnt from the training rows.
        shuffled: right answers where each picture is another example's.
    """

    test: str
    examples: int
    right: float
    chance: float
    blind: float
    shuffled: float


@dataclass(frozen=True)
class Answered:
    """A test's rows with their answers."""

    row: Row
    answer: str

    @property
    def right(self) -> bool:
        """Whether it is the truth."""
        return self.answer.strip().lower() == self.row["outputs"].lower()


def score_tests(pipeline: Pipeline, rows: Path, output: Path) -> list[Score]:
    """Score all tests; those that were scored before are read.

    Args:
        pipeline: the trained model.
        rows: the folder of ``make_data``.
        output: gets ``scores.json`` and each test's answers.
    """
    output.mkdir(parents=True, exist_ok=True)
    scores = []
    for test in TESTS:
        path = output / f"{test}.json"
        if not path.is_file():
            found = read_rows(rows / "test" / f"{test}.jsonl")
            score, answered = _score(pipeline, test, rows, found)
            kept = [{**_without_picture(each.row), "answer": each.answer} for each in answered]
            path.write_text(json.dumps({"score": asdict(score), "answers": kept}, indent=1), encoding="utf-8")
        scores.append(Score(**json.loads(path.read_text(encoding="utf-8"))["score"]))
        print(f"  {test}: {scores[-1].right:.1%} of {scores[-1].examples}", flush=True)
    (output / SCORES).write_text(json.dumps([asdict(score) for score in scores], indent=1), encoding="utf-8")
    return scores


def _score(pipeline: Pipeline, test: str, folder: Path, rows: Sequence[Row]) -> tuple[Score, list[Answered]]:
    shuffled = [{**row, "image_base64_str": other["image_base64_str"]} for row, other in _with_others(rows)]
    if test in RANKED:
        candidates = candidates_of(test, folder, rows)
        answered, controls = (rank(pipeline, each, candidates) for each in (rows, shuffled))
        chance = blind = 1 / len(candidates[0])  # the names beside the true one are drawn at random
    else:
        answered, controls = (ask(pipeline, each) for each in (rows, shuffled))
        train = read_rows(folder / "train" / f"{test}.jsonl")
        chance = 1 / len({row["outputs"] for row in train})
        blind = score_best_guesses(map(_without_words, train), map(_without_words, rows))
    right, by_chance = (sum(each.right for each in some) / len(some) for some in (answered, controls))
    return Score(test, len(rows), right, chance, blind, by_chance), answered


def ask(pipeline: Pipeline, rows: Sequence[Row]) -> list[Answered]:
    """Let the model write an answer to each row."""
    answered = []
    for start in tqdm(range(0, len(rows), _BATCH), "answers", disable=None):
        some = rows[start : start + _BATCH]
        questions = [Question((base64.b64decode(row["image_base64_str"]),), row["inputs"], "") for row in some]
        answers = pipeline.answers(questions, Decoding(max_new_tokens=16))
        answered += [Answered(row, answer) for row, answer in zip(some, answers, strict=True)]
    return answered


def candidates_of(test: str, folder: Path, rows: Sequence[Row]) -> list[list[str]]:
    """Give the names among which each row's is ranked: all new things', or its own and others of known things."""
    if test == "new_thing":
        return [json.loads((folder / NAMES).read_text(encoding="utf-8"))["names"]] * len(rows)
    rng = random.Random(SEED)
    names = sorted({row["outputs"] for row in rows})
    return [
        sorted([row["outputs"], *rng.sample([n for n in names if n != row["outputs"]], NUM_RANKED - 1)]) for row in rows
    ]


def rank(pipeline: Pipeline, rows: Sequence[Row], candidates: Sequence[Sequence[str]]) -> list[Answered]:
    """Let the model choose a row's name: that of the highest mean log-likelihood from all :data:`DISTANCES`."""
    prompts = [pipeline.prompt(WHAT, "")] * len(DISTANCES)
    text = pipeline.text_encoder.prompts(prompts)
    answered = []
    for row, names in zip(tqdm(rows, "ranking", disable=None), candidates, strict=True):
        picture = Image.open(io.BytesIO(base64.b64decode(row["image_base64_str"]))).convert("RGB")
        with pipeline.exclusive() as model:
            scores = model.score_candidates(
                text.input_ids,
                text.attention_mask,
                torch.cat([pipeline.pixels(seen_from(picture, distance)) for distance in DISTANCES]),
                candidates=pipeline.text_encoder.candidates(prompts, [list(names)] * len(DISTANCES)),
            )
        answered.append(Answered(row, names[int(torch.stack(scores.log_likelihood).mean(0).argmax())]))
    return answered


def seen_from(picture: Image.Image, distance: float) -> Image.Image:
    """Give a drawing as it is from nearer (a distance below 1: its middle) or farther (on more of its background)."""
    width, height = picture.size
    inside = (round(width / distance), round(height / distance))
    if distance <= 1:
        left, top = (inside[0] - width) // 2, (inside[1] - height) // 2
        return picture.resize(inside, Image.Resampling.BICUBIC).crop((left, top, left + width, top + height))
    far = Image.new("RGB", picture.size, picture.getpixel((0, 0)))
    far.paste(picture.resize(inside, Image.Resampling.BICUBIC), ((width - inside[0]) // 2, (height - inside[1]) // 2))
    return far


def _with_others(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Give each row a random one: that it may have the same answer is part of the control."""
    return list(zip(rows, random.Random(SEED).sample(rows, len(rows)), strict=True))


def _without_picture(row: Mapping[str, str]) -> Row:
    return {key: value for key, value in row.items() if key != "image_base64_str"}


def _without_words(row: Row) -> Row:
    """Ask a yes/no question without the name, which new questions have anew."""
    question = row["inputs"]
    return {**row, "inputs": "is it?" if question.startswith("is it ") else question}

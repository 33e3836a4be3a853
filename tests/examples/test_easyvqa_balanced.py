"""Yes/no questions of which each text is as often right as wrong."""

import json
from collections import Counter
from pathlib import Path

import pytest

from examples.easyvqa.balanced import SPLITS, balance, write_balanced
from examples.easyvqa.data import read_rows, write_rows
from examples.easyvqa.errors import DemoError
from examples.easyvqa.paths import Cache


def questions(text: str, yes: int, no: int) -> list[dict[str, str]]:
    answers = ["yes"] * yes + ["no"] * no
    return [{"id": f"{text}-{number}", "inputs": text, "outputs": answer} for number, answer in enumerate(answers)]


ROWS = [*questions("is it red?", 3, 20), *questions("is it not red?", 30, 5), *questions("is it teal?", 0, 9)]


def test_each_text_is_as_often_right_as_wrong() -> None:
    kept = balance(ROWS)
    counts = Counter((row["inputs"], row["outputs"]) for row in kept)
    assert counts == {
        ("is it red?", "yes"): 3,
        ("is it red?", "no"): 3,
        ("is it not red?", "yes"): 5,
        ("is it not red?", "no"): 5,
    }
    assert len({row["id"] for row in kept}) == len(kept) and kept == balance(ROWS)


def test_they_are_written_once_beside_the_demonstrations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = Cache(tmp_path)
    with pytest.raises(DemoError, match="make demo"):
        write_balanced(cache)
    for split in SPLITS:
        (cache.data / split).mkdir(parents=True)
        write_rows(cache.data / split / "yesno.jsonl", ROWS)
    write_balanced(cache)
    path = cache.balanced / "train" / "yesno.jsonl"
    assert read_rows(path) == balance(ROWS) and f"{path}: 16 questions" in capsys.readouterr().out
    path.write_text(json.dumps(ROWS[0]))
    write_balanced(cache)
    assert read_rows(path) == ROWS[:1]

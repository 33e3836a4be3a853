"""A training that is killed (SIGKILL) around its evaluations: each stands once in `evaluations.jsonl`."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gitllm_plugin.host import launch
from gitllm_plugin.runners.length import Position
from gitllm_plugin.runners.records import EVALUATIONS_FILE, note_evaluation
from tests.small_run import ENVIRONMENT, ROOT, write_small_run

KILLED_RUN = ROOT / "tests" / "runners" / "killed_run.py"
TWO_EPOCHS = [
    ("val", 0, True),
    ("test", 0, True),
    ("val", 1, True),
    ("test", 1, True),
    ("val", 1, False),
    ("test", 1, False),
]
"""Split, epoch, and whether it is a validation: both splits are validated and tested on."""


def evaluations(folder: Path) -> list[tuple[str, int, bool]]:
    lines = [json.loads(line) for line in (folder / EVALUATIONS_FILE).read_text().splitlines()]
    return [(line["split"], line["epoch"], "best_epoch" in line) for line in lines]


@pytest.mark.parametrize(
    ("place", "number", "done"),
    [
        ("noted", 2, TWO_EPOCHS[:2]),  # the first validation is noted, and no checkpoint says so
        ("noted", 6, TWO_EPOCHS),  # as is the test
        pytest.param("noted", 1, TWO_EPOCHS[:1], marks=pytest.mark.slow),
        pytest.param("noted", 5, TWO_EPOCHS[:5], marks=pytest.mark.slow),
        pytest.param("noting", 4, TWO_EPOCHS[:3], marks=pytest.mark.slow),
    ],
)
def test_each_evaluation_stands_once(tmp_path, place, number, done):
    config = write_small_run(tmp_path, valid_splits=["val", "test"], test_splits=["val", "test"])
    options = ["run.resume_ckpt_path=auto"]
    command = [sys.executable, str(KILLED_RUN), place, str(number), "train", "--cfg-path", str(config), "--options"]
    killed = subprocess.run([*command, *options], env=ENVIRONMENT, capture_output=True, text=True, timeout=200)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = (tmp_path / "output" / "latest").resolve()
    assert evaluations(folder) == done
    launch.train(config, options)
    assert (tmp_path / "output" / "latest").resolve() == folder
    assert sorted(evaluations(folder)) == sorted(TWO_EPOCHS)
    assert not list(folder.rglob(".*"))


def test_the_later_of_two_lines_about_one_evaluation_is_kept(tmp_path):
    at = Position(epoch=1, steps=4, iters=4)
    note_evaluation(tmp_path, "val", at, {"loss": 1.0, "best_epoch": 0})
    note_evaluation(tmp_path, "val_2", at, {"loss": 2.0, "best_epoch": 0})
    with open(tmp_path / EVALUATIONS_FILE, "a") as file:
        file.write('{"split": "va')  # cut off by a crash
    note_evaluation(tmp_path, "val", at, {"loss": 3.0, "best_epoch": 0})
    note_evaluation(tmp_path, "val", at, {"loss": 4.0})
    found = [json.loads(line) for line in (tmp_path / EVALUATIONS_FILE).read_text().splitlines()]
    assert [(line["split"], line["loss"]) for line in found] == [("val_2", 2.0), ("val", 3.0), ("val", 4.0)]

"""What a training says: one screen before its first step, then little, each line once."""

import logging
import re
import subprocess
import sys

import pytest
from tiny_run import build_runner

from gitllm_plugin.host.log import ShortLines
from tests.small_run import ENVIRONMENT, write_small_run


def messages_of(caplog, runner):
    with caplog.at_level(logging.INFO):
        runner.train()
    return caplog.messages


def test_one_screen_says_what_on_what_how_long_and_where_to(tmp_path, caplog):
    runner = build_runner(tmp_path, max_epoch=3, save_every_steps=7)
    messages = messages_of(caplog, runner)
    screen = next(message for message in messages if message.startswith("Training "))
    assert all(len(line) < 80 or str(runner.output_dir) in line for line in screen.splitlines())
    said = " ".join(screen.split())
    trained = sum(p.numel() for p in runner.model.parameters() if p.requires_grad)
    whole = sum(p.numel() for p in runner.model.parameters())
    for fact in (
        "by M3ITTask",
        f"trained {trained:,} of {whole:,} parameters",
        "train: 16 items, val: 7 items, test: 9 items",
        "length 3 epochs: 12 batches of 4, 12 steps",
        "on cpu in float32",
        f"folder {runner.output_dir}",
        "each epoch and every 7 steps and every 30 minutes is saved as checkpoint_latest.pth",
    ):
        assert fact in said, screen


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_epoch": None, "max_iters": 3}, "length 1 epoch of 4 batches, cut short: 3 batches of 4, 3 steps"),
        ({"max_epoch": 1, "accum_grad_iters": 3}, "length 1 epoch: 4 batches of 4, 2 steps"),
        ({"max_epoch": 5, "max_iters": 6}, "length 2 epochs: 6 batches of 4, 6 steps"),
    ],
    ids=["cut short", "accumulated", "fewer epochs than allowed"],
)
def test_how_long_it_is(tmp_path, caplog, given, said):
    messages = messages_of(caplog, build_runner(tmp_path, valid_splits=[], test_splits=[], **given))
    assert said in " ".join(next(message for message in messages if message.startswith("Training ")).split())


def test_no_line_stands_twice_and_epochs_are_counted_as_in_the_names_of_files(tmp_path, caplog):
    runner = build_runner(tmp_path, max_epoch=3, log_freq=100)
    messages = messages_of(caplog, runner)
    assert len(messages) == len(set(messages))
    named = {path.name for path in (runner.output_dir / "result").iterdir()}
    told = [int(found[1]) for message in messages if (found := re.match(r"val, after epoch (\d+): ", message))]
    assert told == [1, 2, 3]
    assert named == {*(f"val_epoch{epoch}.jsonl" for epoch in told), "test_epochbest.jsonl"}
    assert messages[-1].startswith("Done in ") and str(runner.output_dir) in messages[-1]


def test_no_line_stands_twice_where_nothing_is_evaluated(tmp_path, caplog):
    messages = messages_of(caplog, build_runner(tmp_path, max_epoch=3, log_freq=100, valid_splits=[], test_splits=[]))
    assert len(messages) == len(set(messages)) and not any("No validation" in message for message in messages)


def test_a_line_has_its_time_the_day_once_and_a_level_where_it_is_no_note():
    lines = ShortLines()

    def line(level, seconds):
        record = logging.LogRecord("root", level, __file__, 1, "loss %s", ("0.5",), None)
        record.created = seconds
        return lines.format(record)

    day = 86400
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d loss 0.5", line(logging.INFO, 10 * day))
    assert re.fullmatch(r"\d\d:\d\d:\d\d loss 0.5", line(logging.INFO, 10 * day + 1))
    assert re.fullmatch(r"\d\d:\d\d:\d\d warning: loss 0.5", line(logging.WARNING, 10 * day + 2))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d error: loss 0.5", line(logging.ERROR, 11 * day + 2))


QUIET = """
import logging
from gitllm_plugin.host.log import set_up_log
set_up_log()
for name in ("absl", "matplotlib.font_manager", "timm.models", "mine", "root"):
    logging.getLogger(name).info("a note of %s", name)
    logging.getLogger(name).error("an error of %s", name)
"""


def test_libraries_note_nothing_and_the_user_does():
    done = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    notes = [line.rpartition(" ")[2] for line in done.stderr.splitlines() if "a note of" in line]
    errors = [line.rpartition(" ")[2] for line in done.stderr.splitlines() if "an error of" in line]
    assert notes == ["mine", "root"] and len(errors) == 5


def test_a_command_prints_at_most_a_screen_and_a_few_lines(tmp_path):
    config = write_small_run(tmp_path, max_epoch=2, log_freq=50)
    command = [sys.executable, "-m", "gitllm_plugin", "train", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT)
    assert done.stdout == "" and len(done.stderr.splitlines()) < 45, done.stderr
    for noise in ("distributed mode", "default tokenizer", "fontManager", "torchvision", "Running Parameters"):
        assert noise not in done.stderr

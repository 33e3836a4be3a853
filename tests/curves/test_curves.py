"""Curves: what is read from a run's folder, and that figures show it."""

import json

import pytest
from PIL import Image

from gitllm_plugin.curves.draw import draw_run, draw_training_loss, draw_validation_loss, smooth
from gitllm_plugin.curves.read import read_run
from gitllm_plugin.errors import ConfigError


def write_run(folder, losses=(2.0, 1.0, 0.5), validation=((1, 1.5), (3, 0.7))):
    folder.mkdir(parents=True)
    steps = [{"step": step, "loss": loss, "epoch": 0, "iter": step + 1} for step, loss in enumerate(losses)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in steps))
    evaluations = [{"split": "val", "step": step, "loss": loss, "exact_match": 0.5} for step, loss in validation]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in evaluations))
    return folder


def test_a_run_is_read_with_what_a_crash_cut_off_left_out(tmp_path):
    folder = write_run(tmp_path / "run")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "lo')
    run = read_run(folder)
    assert run.name == "run" and [entry["loss"] for entry in run.steps] == [2.0, 1.0, 0.5]


def test_an_evaluation_that_was_done_again_after_resuming_counts_once(tmp_path):
    run = read_run(write_run(tmp_path / "run", validation=((1, 9.0), (3, 0.7), (1, 1.5))))
    assert [(entry["step"], entry["loss"]) for entry in run.evaluations_of("val")] == [(1, 1.5), (3, 0.7)]
    assert run.evaluations_of("test") == []


def test_the_folder_above_means_its_latest_run(tmp_path):
    write_run(tmp_path / "exp" / "20260101")
    (tmp_path / "exp" / "latest").symlink_to("20260101")
    assert read_run(tmp_path / "exp").name == "exp"
    with pytest.raises(ConfigError, match="is not the folder of a training run: it has no metrics.jsonl"):
        read_run(tmp_path)


def test_smoothing_is_a_running_mean():
    assert smooth([4.0, 2.0, 0.0, 2.0], 2) == [4.0, 3.0, 1.0, 1.0]


@pytest.mark.parametrize("count", [1, 3])
def test_figures_differ_with_what_they_show(tmp_path, count):
    runs = [read_run(write_run(tmp_path / f"run{i}", losses=(2.0, 1.0 + i, 0.5)), f"run {i}") for i in range(count)]
    draw_training_loss(runs, tmp_path / "out" / "train.png")
    draw_validation_loss(runs, tmp_path / "out" / "val.png")
    train, val = (Image.open(tmp_path / "out" / name).convert("L") for name in ("train.png", "val.png"))
    assert train.size == val.size and train.size[0] > 600
    assert train.tobytes() != val.tobytes() and len(set(train.tobytes())) > 10


def test_runs_are_drawn_beside_each_other_by_the_command(tmp_path, capsys):
    from gitllm_plugin.cli.main import main

    for name in "ab":
        write_run(tmp_path / name)
    assert main(["plot", str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(tmp_path / "figures")]) == 0
    paths = capsys.readouterr().out.split()
    assert [path.rpartition("/")[2] for path in paths] == ["train_loss.png", "val_loss.png"]
    assert all(Image.open(path).size[0] > 600 for path in paths)
    assert main(["plot", str(tmp_path)]) == 2
    assert "is not the folder of a training run" in capsys.readouterr().err


def test_a_split_that_was_evaluated_once_has_no_curve(tmp_path):
    run = write_run(tmp_path / "run", validation=((3, 0.7),))
    assert [path.name for path in draw_run(run)] == ["train_loss.png"]

"""What a run leaves besides checkpoints: figures, TensorBoard, Weights & Biases, and how it was made."""

import json
import sys
import time

import pytest
import torch
from PIL import Image
from tiny_run import build_runner

from gitllm_plugin.config import run as config_run
from gitllm_plugin.errors import ConfigError

ONE_EPOCH = {"max_epoch": 1, "test_splits": []}


@pytest.mark.figures
def test_losses_are_drawn_at_the_end(tmp_path):
    run = build_runner(tmp_path, max_epoch=2)
    run.train()
    assert sorted(path.name for path in run.output_dir.glob("*.png")) == ["train_loss.png", "val_loss.png"]
    assert Image.open(run.output_dir / "train_loss.png").size[0] > 600


def test_the_revision_and_the_command_are_kept(tmp_path):
    run = build_runner(tmp_path, **ONE_EPOCH)
    run.train()
    versions = json.loads((run.output_dir / "versions.json").read_text())
    assert versions["command"] == sys.argv
    assert versions["torch"] == torch.__version__ and "source_revision" in versions


def test_tensorboard_gets_what_the_metrics_hold(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = build_runner(tmp_path, trackers=["tensorboard"], **ONE_EPOCH)
    run.train()
    events = EventAccumulator(str(run.output_dir / "tensorboard"))
    events.Reload()
    steps = [json.loads(line) for line in (run.output_dir / "metrics.jsonl").read_text().splitlines()]
    found = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert found == [(step["step"] + 1, pytest.approx(step["loss"])) for step in steps]
    assert {"train/lr", "train/grad_norm", "val/loss", "val/exact_match"} <= set(events.Tags()["scalars"])


def test_weights_and_biases_get_it_too(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = build_runner(tmp_path, trackers=["wandb"], **ONE_EPOCH)
    run.train()
    (file,) = (run.output_dir / "wandb").glob("offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 60  # a process of its own writes it
    while b"val/exact_match" not in (written := file.read_bytes()) and time.monotonic() < deadline:
        time.sleep(0.2)
    for name in ("train/loss", "val/exact_match", run.output_dir.name):
        assert name.encode() in written, name


def test_a_tracker_that_is_not_installed_is_named_with_its_package(tmp_path, monkeypatch):
    monkeypatch.setattr(config_run, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="run.trackers has 'wandb', which is not installed: pip install wandb"):
        build_runner(tmp_path, trackers=["wandb"], **ONE_EPOCH).train()

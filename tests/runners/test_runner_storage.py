"""Disks that are full or cannot be written to: a clear error, what was saved is whole, and the run can go on."""

import json
import resource
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny_run import build_runner

from gitllm_plugin.common.weights import read_checkpoint
from gitllm_plugin.errors import ConfigError, StorageError

SETTINGS = {"valid_splits": [], "test_splits": [], "save_every_steps": 2, "tiny": {"size": 32, "dropout": 0.2}}


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def largest_file():
    """Sets the largest size that a file may be written to; afterwards there is no limit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def mounted(folder: Path, options: str):
    """A small file system in memory; skips where this user may not mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("this user may not mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def before_batch(runner, number, action) -> None:
    """Do something before a batch of the run is trained on."""
    original, batches = runner.task.train_outputs, []

    def train_outputs(model, samples):
        batches.append(samples)
        if len(batches) == number:
            action()
        return original(model, samples)

    runner.task.train_outputs = train_outputs


def check_stopped_and_resumable(folder: Path, output: Path, after: int) -> None:
    """What was saved loads, nothing half written is left, and the run that goes on is the uninterrupted one."""
    content = read_checkpoint(folder / "checkpoint_latest.pth")
    assert content["steps"] == after
    assert not list(folder.rglob(".*"))
    for path in folder.rglob("*.pth"):
        read_checkpoint(path)
    resumed = build_runner(output, resume_ckpt_path="auto", **SETTINGS)
    resumed.train()
    assert resumed.output_dir == folder
    whole = build_runner(output.parent / "whole", **SETTINGS)
    whole.train()
    assert losses(folder) == losses(whole.output_dir)


def test_a_checkpoint_that_does_not_fit(tmp_path, largest_file, caplog):
    run = build_runner(tmp_path / "out", **SETTINGS)
    before_batch(run, 6, lambda: largest_file(6000))
    with pytest.raises(StorageError, match=r"step_00000006.pth cannot be written: .*MB are free there\)\. What was"):
        run.train()
    largest_file(resource.RLIM_INFINITY)
    assert "holds the run after 4 iterations (4 of epoch 1). Resume with:" in caplog.text
    check_stopped_and_resumable(run.output_dir, tmp_path / "out", after=4)


def test_a_metrics_file_that_does_not_fit(tmp_path, largest_file):
    run = build_runner(tmp_path / "out", **SETTINGS)
    before_batch(run, 6, lambda: largest_file((run.output_dir / "metrics.jsonl").stat().st_size + 10))
    with pytest.raises(StorageError, match=r"metrics\.jsonl cannot be written: File too large"):
        run.train()
    largest_file(resource.RLIM_INFINITY)
    check_stopped_and_resumable(run.output_dir, tmp_path / "out", after=4)


def test_a_full_disk(tmp_path):
    with mounted(tmp_path / "disk", "size=1m"):
        run = build_runner(tmp_path / "disk" / "out", **SETTINGS)
        filler = tmp_path / "disk" / "filler"

        def fill():
            with open(filler, "wb", buffering=0) as file, pytest.raises(OSError):
                while True:
                    file.write(b"0" * 4096)

        before_batch(run, 6, fill)
        with pytest.raises(StorageError, match=r"cannot be written: .*\(0 MB are free there\)"):
            run.train()
        filler.unlink()
        check_stopped_and_resumable(run.output_dir, tmp_path / "disk" / "out", after=4)


def test_a_disk_that_cannot_be_written_to(tmp_path):
    with (
        mounted(tmp_path / "disk", "ro"),
        pytest.raises(ConfigError, match="run.output_dir is .*disk/out, where no folder can be made: Read-only"),
    ):
        build_runner(tmp_path / "disk" / "out")


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ConfigError, match="run.output_dir is .*out, where no folder can be made: Not a directory"):
        build_runner(tmp_path / "out")

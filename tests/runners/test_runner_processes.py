"""Runs in processes of their own: two ranks, and Ctrl-C."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_run import TinyModel, build_runner

SCRIPT = Path(__file__).with_name("tiny_run.py")
ROOT = SCRIPT.parents[2]
PYTHONPATH = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH}


def records(folder: Path) -> list[dict]:
    """The lines of `metrics.jsonl`."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_two_gloo_ranks_equal_one_process(tmp_path):
    """The global batches are the same; 17 items and 7 to evaluate divide among two ranks unevenly."""
    tiny = {"size": 17, "dropout": 0.0}
    single = build_runner(tmp_path / "one", tiny=tiny, batch_size_train=4, accum_grad_iters=2)
    single.train()

    options = [f"output_dir={tmp_path / 'two'}", "batch_size_train=2", "accum_grad_iters=2"]
    options += [f"tiny.{key}={value}" for key, value in tiny.items()]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*torchrun, str(SCRIPT), *options]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    folders = [path for path in (tmp_path / "two").iterdir() if not path.is_symlink()]
    assert len(folders) == 1

    one, two = records(single.output_dir), records(folders[0])
    assert [record["loss"] for record in two] == pytest.approx([record["loss"] for record in one], abs=1e-5)
    assert [record["samples"] for record in two] == [record["samples"] for record in one]
    for split in ("val", "test"):
        expected = json.loads((single.output_dir / f"{split}_metrics.json").read_text())
        found = json.loads((folders[0] / f"{split}_metrics.json").read_text())
        assert found == pytest.approx(expected, abs=1e-5)
    predictions = (folders[0] / "result" / "test_epochbest.jsonl").read_text().splitlines()
    assert len(predictions) == 9


def start_and_interrupt(arguments: list[str], after_steps: int, folder: Path) -> subprocess.Popen:
    """Start a run, send SIGINT once it has done `after_steps` steps, and wait for its end."""
    run = subprocess.Popen(
        [sys.executable, str(SCRIPT), *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and run.poll() is None:
        found = list(folder.glob("*/metrics.jsonl"))
        if found and len(found[0].read_text().splitlines()) >= after_steps:
            os.killpg(run.pid, signal.SIGINT)  # as a terminal does: worker processes get it too
            break
        time.sleep(0.02)
    return run


def test_ctrl_c_leaves_a_usable_folder_and_says_how_to_resume(tmp_path):
    """Interrupted in the second epoch, with worker processes; resumed, it ends like an uninterrupted run."""
    tiny = {"size": 24, "dropout": 0.1}
    settings = {"max_epoch": 2, "num_workers": 1}
    arguments = [f"output_dir={tmp_path / 'cut'}", "tiny.seconds=0.05"]
    arguments += [f"{key}={value}" for key, value in settings.items()]
    arguments += [f"tiny.{key}={value}" for key, value in tiny.items()]
    run = start_and_interrupt(arguments, after_steps=7, folder=tmp_path / "cut")
    output = run.communicate(timeout=60)[0].decode()
    assert run.returncode == -signal.SIGINT, output

    command = re.search(r"gitllm train --cfg-path tiny.yaml --options .*run.resume_ckpt_path=(\S+)", output)
    assert command, output
    checkpoint = Path(command[1])
    content = torch.load(checkpoint, weights_only=True)
    assert checkpoint.name == "checkpoint_latest.pth"
    assert content["epoch"] == 0 and 0 < content["epoch_iters"] < 6

    model = TinyModel()
    model.load_checkpoint(str(checkpoint))
    build_runner(tmp_path / "evaluated", model=model, evaluate=True).evaluate(skip_reload=True)

    resumed = build_runner(tmp_path / "cut", tiny=tiny, resume_ckpt_path=str(checkpoint), **settings)
    resumed.train()
    whole = build_runner(tmp_path / "whole", tiny=tiny, **settings)
    whole.train()
    assert [record["loss"] for record in records(checkpoint.parent)] == [
        record["loss"] for record in records(whole.output_dir)
    ]

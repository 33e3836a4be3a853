"""LAVIS's own runners with our model and data on a CPU, alone and in two processes."""

import json

import pytest

from tests.small_run import write_small_run

RUN = {
    "lr_sched": "linear_warmup_cosine_lr",
    "min_lr": 0.0,
    "weight_decay": 0.05,
    "num_workers": 0,
    "evaluate": False,
    "train_splits": ["train"],
    "dist_url": "env://",
    "metrics": [],  # the best score by loss is negative, and LAVIS's runners begin at 0
    "valid_splits": [],
    "test_splits": [],
}
ITERATIONS = {"runner": "runner_iter", "max_iters": 4, "iters_per_inner_epoch": 2}


def small_run(folder, **changes):
    return write_small_run(folder, {"model_type": "tiny_opt"}, **{**RUN, **changes})


def train_losses(folder):
    """The losses in LAVIS's log, one an inner epoch."""
    (log,) = {path.resolve() for path in (folder / "output").rglob("log.txt")}
    lines = [line for line in log.read_text().splitlines() if line.startswith('{"train_')]
    return [float(json.loads(line)["train_loss"]) for line in lines]


@pytest.mark.parametrize(
    "changes", [pytest.param(ITERATIONS, id="iter"), pytest.param({"runner": "runner_base"}, marks=pytest.mark.slow)]
)
def test_alone(run_python, tmp_path, changes):
    config = small_run(tmp_path, **changes)
    finished = run_python(args=["-W", "ignore", "-m", "gitllm_plugin", "train", "--cfg-path", str(config)])
    assert finished.returncode == 0, finished.stderr
    first, last = train_losses(tmp_path)
    assert last < first


@pytest.mark.slow
@pytest.mark.parametrize(
    ("validated", "kept"),
    [
        ([], {"checkpoint_2.pth", "checkpoint_4.pth"}),
        (["val"], {"checkpoint_best.pth"}),
        (["test"], {"checkpoint_4.pth"}),
    ],
)
def test_runner_iter_in_two_processes(validated, kept, run_python, tmp_path):
    config = small_run(tmp_path, **{**ITERATIONS, "batch_size_train": 2, "valid_splits": validated})
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = ["-W", "ignore", *launcher, "-m", "gitllm_plugin", "train", "--cfg-path", str(config)]
    finished = run_python(args=command, timeout=280)
    assert finished.returncode == 0, finished.stderr
    assert "distributed init (rank 1, world 2, gloo)" in finished.stdout
    first, last = train_losses(tmp_path)
    assert last < first
    assert {path.name for path in (tmp_path / "output").rglob("*.pth")} == kept

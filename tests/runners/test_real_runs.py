"""GIT-LLM itself, tiny and random, by the command line: interrupted, resumed, evaluated; two processes; bf16."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gitllm_plugin.cli.main import main
from gitllm_plugin.host import launch
from tests.small_run import ENVIRONMENT, TINY_LORA, write_small_run


@pytest.fixture
def config(tmp_path) -> Path:
    """Path of a configuration with its data beside it."""
    return write_small_run(tmp_path, TINY_LORA)


def run_folder(config: Path, output: str = "output", link: str = "latest") -> Path:
    return (config.parent / output / link).resolve()


def losses(folder: Path) -> list[float]:
    """The loss of every step."""
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def metrics(folder: Path) -> dict:
    return json.loads((folder / "test_metrics.json").read_text())


def predictions(folder: Path) -> dict[str, str]:
    lines = (folder / "result" / "test_epochbest.jsonl").read_text().splitlines()
    return {example["instance_id"]: example["prediction"] for example in map(json.loads, lines)}


def interrupt_in_the_middle(command: list[str], config: Path, after_steps: int) -> subprocess.CompletedProcess:
    """Press Ctrl-C once `after_steps` steps are done."""
    run = subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and run.poll() is None:
        found = list(config.parent.glob("output/*/metrics.jsonl"))
        if found and len(found[0].read_text().splitlines()) >= after_steps:
            os.killpg(run.pid, signal.SIGINT)
            break
        time.sleep(0.01)
    output = run.communicate(timeout=60)[0]
    return subprocess.CompletedProcess(command, run.returncode, output)


def test_interrupted_resumed_by_the_printed_command_and_evaluated(config):
    options = ["run.batch_size_train=1", "run.max_epoch=4"]  # 48 steps
    command = [sys.executable, "-m", "gitllm_plugin", "train", "--cfg-path", str(config), "--options", *options]
    interrupted = interrupt_in_the_middle(command, config, after_steps=5)
    assert interrupted.returncode == 130, interrupted.stdout
    assert len(losses(run_folder(config))) < 48

    printed = re.search(r"Resume with:\n *(.+)", interrupted.stdout)
    assert printed, interrupted.stdout
    resume = shlex.split(printed[1])
    assert resume[:-1] == command
    resumed = subprocess.run(resume, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert resumed.returncode == 0, resumed.stderr
    folder = run_folder(config)
    assert len(losses(folder)) == 48

    weights = ["model.load_finetuned=True", f"model.finetuned={folder / 'checkpoint_best.pth'}"]
    assert main(["evaluate", "--cfg-path", str(config), "--options", *weights]) == 0
    evaluation = run_folder(config, link="latest_evaluation")
    assert evaluation != folder
    assert metrics(evaluation) == metrics(folder)
    assert predictions(evaluation) == predictions(folder)


def test_two_processes_equal_one(config):
    """At the same global batch: every loss, every prediction, and the metrics."""
    launch.train(config)
    options = ["run.batch_size_train=2", f"run.output_dir={config.parent / 'two'}"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*torchrun, "-m", "gitllm_plugin", "train", "--cfg-path", str(config), "--options", *options]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "torchvision" not in done.stderr

    one, two = run_folder(config), run_folder(config, "two")
    assert len(losses(one)) == 6
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)
    assert len(predictions(one)) == 7 and predictions(two) == predictions(one)
    assert metrics(two) == pytest.approx(metrics(one), abs=1e-5)


@pytest.mark.slow
def test_a_model_spread_over_two_processes_equals_one(config):
    """FSDP2: the losses, the metrics and every prediction; its checkpoint goes on in one process."""
    launch.train(config)
    options = ["run.batch_size_train=2", f"run.output_dir={config.parent / 'two'}", "run.sharding=fsdp"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*torchrun, "-m", "gitllm_plugin", "train", "--cfg-path", str(config), "--options", *options]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    one, two = run_folder(config), run_folder(config, "two")
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)
    assert len(predictions(one)) == 7 and predictions(two) == predictions(one)
    assert metrics(two) == pytest.approx(metrics(one), abs=1e-5)

    more = [f"run.output_dir={config.parent / 'two'}", "run.max_epoch=3", "run.resume_ckpt_path=auto"]
    launch.train(config, more)
    assert len(losses(two)) == 9


def start_slurm_task(config: Path, rank: int, *options: str) -> subprocess.Popen:
    """One of two tasks, with the variables that `srun` gives them."""
    slurm = {"SLURM_PROCID": str(rank), "SLURM_NTASKS": "2", "SLURM_LOCALID": str(rank), "SLURM_JOB_ID": "41"}
    command = [sys.executable, "-m", "gitllm_plugin", "train", "--cfg-path", str(config), "--options", *options]
    return subprocess.Popen(
        command,
        env={**ENVIRONMENT, **slurm, "SLURM_STEP_NODELIST": "localhost"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_two_tasks_of_slurm_are_told_to_stop_and_go_on_when_started_again(config):
    """As with `#SBATCH --signal=USR1@120 --requeue`: both get the signal, save, and end without an error."""
    options = ["run.batch_size_train=1", "run.max_epoch=4", "run.resume_ckpt_path=auto"]  # 24 steps
    tasks = [start_slurm_task(config, rank, *options) for rank in (0, 1)]
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and all(task.poll() is None for task in tasks):
        found = list(config.parent.glob("output/*/metrics.jsonl"))
        if found and len(found[0].read_text().splitlines()) >= 3:
            break
        time.sleep(0.01)
    for task in tasks:
        task.send_signal(signal.SIGUSR1)
    outputs = [task.communicate(timeout=100)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], outputs
    assert "Stopped by SIGUSR1" in outputs[0] and "distributed init (rank 1, world 2, gloo)" in outputs[1]
    assert 3 <= len(losses(run_folder(config))) < 24

    tasks = [start_slurm_task(config, rank, *options) for rank in (0, 1)]
    outputs = [task.communicate(timeout=200)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], outputs
    folder = run_folder(config)
    tasks = [start_slurm_task(config, rank, *options) for rank in (0, 1)]
    assert "Nothing to do: 4 of 4 epochs" in tasks[0].communicate(timeout=200)[0]
    tasks[1].communicate(timeout=200)

    launch.train(config, ["run.batch_size_train=2", "run.max_epoch=4", f"run.output_dir={config.parent / 'one'}"])
    assert losses(folder) == pytest.approx(losses(run_folder(config, "one")), abs=1e-5)


def test_bf16_trains_and_answers(config):
    options = ["run.precision=bf16", "model.dtype=bfloat16", "run.max_epoch=3", "run.valid_splits=[]"]
    runner = launch.train(config, options)
    found = losses(run_folder(config))
    assert found[-1] < found[0]
    parameters = list(runner.model.parameters())
    assert {str(p.dtype) for p in parameters if p.requires_grad} == {"torch.float32"}
    assert {str(p.dtype) for p in parameters if not p.requires_grad} == {"torch.bfloat16"}
    assert metrics(run_folder(config))["num_examples"] == 7

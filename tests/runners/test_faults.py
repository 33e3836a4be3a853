"""Runs of GIT-LLM itself that are killed (SIGKILL) anywhere, resumed, and compared with one that was not.

LoRA has dropout and the image encoder is frozen; losses and weights must be the same to the last bit.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gitllm_plugin.common.weights import read_checkpoint
from gitllm_plugin.host import launch
from tests.small_run import ENVIRONMENT, write_small_run

SCRIPT = Path(__file__).with_name("killed_run.py")
MODEL = {"model_type": "tiny_llama", "lora": {"rank": 4, "alpha": 8, "dropout": 0.2}}
NUM_STEPS = 12
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@pytest.fixture(autouse=True)
def one_thread():
    """Like the runs in processes of their own: sums in another order differ in the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """12 steps in two epochs, saved after every second one and validated after each epoch."""
    folder = tmp_path_factory.mktemp("faults")
    changes = {"batch_size_train": 2, "save_every_steps": 2, "test_splits": [], "keep_last": 2}
    return write_small_run(folder, MODEL, **changes)


@pytest.fixture(scope="module")
def whole(config) -> Path:
    """The folder of a run that nothing happened to."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    launch.train(config, [f"run.output_dir={config.parent / 'whole'}"])
    torch.set_num_threads(threads)
    return (config.parent / "whole" / "latest").resolve()


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def options(output: Path) -> list[str]:
    return [f"run.output_dir={output}", "run.resume_ckpt_path=auto"]


def start(config: Path, output: Path, program: list[str], **environment: str) -> subprocess.Popen:
    """Start a run in a process group of its own."""
    command = [sys.executable, *program, "train", "--cfg-path", str(config), "--options", *options(output)]
    return subprocess.Popen(
        command,
        env={**ENVIRONMENT, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def check_all_checkpoints_load(output: Path) -> None:
    """Whatever has a checkpoint's name is one; what was half written is hidden."""
    for path in [*output.rglob("[!.]*.pth"), *output.rglob("[!.]*.safetensors")]:
        read_checkpoint(path)


def check_equal(folder: Path, whole: Path) -> None:
    """Every loss of the run, and its last and best weights."""
    assert losses(folder) == losses(whole)
    for name in ("checkpoint_latest.safetensors", "checkpoint_best.safetensors"):
        expected = load_file(whole / name)
        found = load_file(folder / name)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items()), name
    assert not [path for path in folder.rglob(".*")]


def resume(config: Path, output: Path) -> Path:
    """Go on, here; gives the run's only folder that has steps."""
    launch.train(config, options(output))
    return (output / "latest").resolve()


@pytest.mark.parametrize(
    ("place", "number"), [("written half", 3), pytest.param("unlinked", 4, marks=pytest.mark.slow)]
)
def test_killed_while_saving(config, whole, tmp_path, place, number):
    run = start(config, tmp_path, [str(SCRIPT), place, str(number)])
    output = run.communicate(timeout=200)[0]
    assert run.returncode == -signal.SIGKILL, output
    check_all_checkpoints_load(tmp_path)
    check_equal(resume(config, tmp_path), whole)


@pytest.mark.slow
def test_one_rank_of_two_is_killed(config, tmp_path):
    """Its partner ends too; both go on, with the losses of two ranks that nothing happened to."""
    folders = {}
    for name, program in {
        "cut": [*TORCHRUN, str(SCRIPT), "step", "4"],
        "whole": [*TORCHRUN, "-m", "gitllm_plugin"],
    }.items():
        run = start(config, tmp_path / name, program, KILLED_RANK="1")
        output = run.communicate(timeout=250)[0]
        assert (run.returncode == 0) == (name == "whole"), output
        folders[name] = tmp_path / name
    check_all_checkpoints_load(folders["cut"])
    run = start(config, folders["cut"], [*TORCHRUN, "-m", "gitllm_plugin"])
    output = run.communicate(timeout=250)[0]
    assert run.returncode == 0, output
    assert "Resuming" in output
    check_equal((folders["cut"] / "latest").resolve(), (folders["whole"] / "latest").resolve())


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_random_times_20_of_20_are_equal(config, whole, tmp_path):
    """Each run is killed one to three times: at a place that is drawn, or after a time that is drawn."""
    generator = random.Random(0)
    places = ["step", "written half", "unnamed", "unlinked", "between", "evaluation", "time"]
    equal = 0
    for trial in range(20):
        output = tmp_path / str(trial)
        kills = [places[trial % len(places)]] + generator.choices(places, k=generator.randrange(3))
        for place in kills:
            _kill_once(config, output, place, generator)
            check_all_checkpoints_load(output)
        check_equal(resume(config, output), whole)
        equal += 1
        print(f"trial {trial + 1}: killed at {', '.join(kills)}: equal")
    assert equal == 20


def _kill_once(config: Path, output: Path, place: str, generator: random.Random) -> None:
    """Go on until the run is killed, or done before its time has come."""
    if place != "time":
        run = start(config, output, [str(SCRIPT), place, str(generator.randint(1, 6))])
        shown = run.communicate(timeout=200)[0]
        assert run.returncode in (0, -signal.SIGKILL), shown
        return
    run = start(config, output, ["-m", "gitllm_plugin"])
    deadline = time.monotonic() + 200
    while run.poll() is None and time.monotonic() < deadline and not list(output.glob("*/metrics.jsonl")):
        time.sleep(0.01)
    time.sleep(generator.uniform(0, 3))
    if run.poll() is None:
        os.killpg(run.pid, signal.SIGKILL)
    run.communicate(timeout=60)

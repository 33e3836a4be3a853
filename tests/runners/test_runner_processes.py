"""Runs in processes of their own: two ranks, Ctrl-C, and errors that nobody expected."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from tiny_run import TinyModel, build_runner

from gitllm_plugin.errors import LostProcessError
from tests.small_run import ENVIRONMENT

SCRIPT = Path(__file__).with_name("tiny_run.py")
RANKS = Path(__file__).with_name("ranks_run.py")


def records(folder: Path) -> list[dict]:
    """The lines of `metrics.jsonl`."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def torchrun(folder: Path, ranks: int, *scenarios: str) -> subprocess.CompletedProcess:
    """Run scenarios of `ranks_run.py` one after another in one group of processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command = [sys.executable, *launcher, str(RANKS), str(folder), *scenarios]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=280)


SCENARIOS = (
    "equal_to_one_process",
    "text_only_on_one_rank",
    "streams_of_unequal_length",
    "ranks_that_log_different_keys",
    "one_rank_is_told_to_stop",
    "an_error_of_rank_0_reaches_all",
    "gradients_of_git_llm_sharded",
    "any_split_has_the_gradient_of_the_whole",
    "tiny_sharded",
)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """What each scenario gave on each of two ranks; the last one ends them both."""
    folder = tmp_path_factory.mktemp("ranks")
    done = torchrun(folder, 2, *SCENARIOS, "stuck")
    print(done.stdout)

    def result(scenario: str) -> list:
        paths = [folder / f"{scenario}_{rank}.json" for rank in (0, 1)]
        assert all(path.is_file() for path in paths), done.stderr
        return [json.loads(path.read_text()) for path in paths]

    result.errors = done.stderr
    return result


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """The run that several ranks are compared with."""
    tiny = {"size": 17, "dropout": 0.0}
    run = build_runner(tmp_path_factory.mktemp("one"), tiny=tiny, batch_size_train=4, accum_grad_iters=2)
    run.train()
    return run


def check_equal(result: dict, single) -> None:
    """Losses, samples, scores and predictions of several ranks are those of one process."""
    one = records(single.output_dir)
    assert result["losses"] == pytest.approx([record["loss"] for record in one], abs=1e-5)
    several = records(Path(result["folder"]))
    assert [record["samples"] for record in several] == [record["samples"] for record in one]
    for split, scores in result["scores"].items():
        expected = json.loads((single.output_dir / f"{split}_metrics.json").read_text())
        assert scores == pytest.approx(expected, abs=1e-5)
    assert result["predictions"] == 9


def test_two_gloo_ranks_equal_one_process(two_ranks, one_process):
    """The global batches are the same; 17 items and 7 to evaluate divide among two ranks unevenly."""
    first, second = two_ranks("equal_to_one_process")
    assert first == second
    check_equal(first, one_process)


@pytest.mark.slow
def test_four_gloo_ranks_equal_one_process(tmp_path, one_process):
    done = torchrun(tmp_path, 4, "equal_to_one_process")
    assert done.returncode == 0, done.stderr
    check_equal(json.loads((tmp_path / "equal_to_one_process_3.json").read_text()), one_process)


def test_a_rank_without_images_does_not_hang_the_others(two_ranks):
    first, second = two_ranks("text_only_on_one_rank")
    assert first == second and len(first) == 4


def test_streams_of_unequal_length_end_on_all_ranks(two_ranks):
    for result in two_ranks("streams_of_unequal_length"):
        assert "ended in epoch 1 after 3 iterations on one of the ranks or more" in result["error"]
        assert result["steps"] == 3 and result["saved"]


def test_ranks_that_log_different_keys_agree_on_the_best(two_ranks):
    assert two_ranks("ranks_that_log_different_keys") == [{"best": -1.0, "epoch": 1}] * 2


def test_a_signal_to_one_rank_stops_all_after_the_same_step(two_ranks):
    first, second = two_ranks("one_rank_is_told_to_stop")
    assert first == second and first["steps"] == 5 == len(first["losses"])


def test_an_error_of_rank_0_is_raised_on_all(two_ranks):
    for message in two_ranks("an_error_of_rank_0_reaches_all"):
        assert "where no folder can be made" in message


def test_sharded_gradients_are_those_of_one_process_also_without_images_on_one_rank(two_ranks):
    differences, nothing = two_ranks("gradients_of_git_llm_sharded")
    assert any(".lora_" in name for name in differences) and any("projection" in name for name in differences)
    assert max(differences.values()) < 1e-5
    assert nothing == {}


def test_any_split_over_two_ranks_has_the_gradient_of_the_whole(two_ranks):
    results = two_ranks("any_split_has_the_gradient_of_the_whole")
    assert len(results[0]) == len(results[1]) == 4 * 5  # weights; families, and one of them sharded
    for differences in results:
        assert {case: values for case, values in differences.items() if max(values) > 1e-6} == {}


def test_sharded_training_saves_whole_weights_and_resumes(two_ranks):
    result, _ = two_ranks("tiny_sharded")
    assert result["fsdp"][:2] == pytest.approx(result["ddp"][:2], abs=1e-5)
    assert len(result["ddp"]) == 8
    assert result["weights"] == {"projection.weight": [8, 4], "projection.bias": [8], "text": [8]}


def test_ranks_that_are_stuck_end_and_say_where(two_ranks):
    stuck = [line for line in two_ranks.errors.splitlines() if "has made no progress" in line]
    places = {re.search(r"rank (\d) of 2 .* at: (.*?)\. Each", line).groups() for line in stuck}
    # Both give up at about the same time; the one that waits may see that its partner has gone before it does.
    waiting = ("0", "step 1, waiting for the batches of the other ranks")
    assert places - {waiting} == {("1", "step 1, reading batches")}, two_ranks.errors


def start_and_signal(
    arguments: list[str], number: int, after_steps: int, folder: Path, ignored: bool = False
) -> subprocess.Popen:
    """Start a run, send its processes a signal once it has done `after_steps` steps, and wait for its end.

    `ignored`: the run is started by a shell that ignores the signal, as for commands in the background.
    """
    command = [sys.executable, str(SCRIPT), *arguments]
    if ignored:
        command = ["sh", "-c", f"trap '' {number}; exec \"$@\"", "sh", *command]
    run = subprocess.Popen(
        command,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and run.poll() is None:
        found = list(folder.glob("*/metrics.jsonl"))
        if found and len(found[0].read_text().splitlines()) >= after_steps:
            os.killpg(run.pid, number)  # as a terminal and SLURM do: worker processes get it too
            break
        time.sleep(0.02)
    return run


@pytest.mark.parametrize(
    ("number", "status", "ignored"),
    [
        (signal.SIGINT, -signal.SIGINT, False),
        pytest.param(signal.SIGINT, -signal.SIGINT, True, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 0, False, marks=pytest.mark.slow),
    ],
)
def test_a_signal_leaves_a_usable_folder_and_says_how_to_resume(tmp_path, number, status, ignored):
    """Interrupted in the second epoch, with worker processes; resumed, it ends like an uninterrupted run."""
    tiny = {"size": 24, "dropout": 0.1}
    settings = {"max_epoch": 2, "num_workers": 1}
    arguments = [f"output_dir={tmp_path / 'cut'}", "tiny.seconds=0.05"]
    arguments += [f"{key}={value}" for key, value in settings.items()]
    arguments += [f"tiny.{key}={value}" for key, value in tiny.items()]
    run = start_and_signal(arguments, number, after_steps=7, folder=tmp_path / "cut", ignored=ignored)
    output = run.communicate(timeout=60)[0].decode()
    assert run.returncode == status, output

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


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_an_unexpected_error_ends_the_run_with_its_workers(tmp_path, stream):
    arguments = [f"output_dir={tmp_path}", "num_workers=2", "max_iters=4", "iters_per_inner_epoch=4"]
    arguments += [f"tiny.stream={stream}", "tiny.fails_at=2"]
    run = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=200
    )
    assert run.returncode == 1
    assert run.stderr.rstrip().endswith("out of memory, for a test"), run.stderr


@pytest.mark.parametrize("stream", [False, True])
def test_workers_end_while_the_error_is_held(tmp_path, stream):
    """As in a notebook, which keeps the last traceback, and with it the loop's iterator."""
    lengths = {"max_iters": 4, "iters_per_inner_epoch": 4}
    run = build_runner(tmp_path, tiny={"stream": stream, "fails_at": 2}, num_workers=1, **lengths)
    with pytest.raises(torch.OutOfMemoryError) as held:
        run.train()
    assert held.tb is not None and not multiprocessing.active_children()


def test_the_interpreter_ends_workers_that_nobody_closed(tmp_path):
    """Evaluations have loaders too; a global name holds the iterator to the very end."""
    program = """
    from gitllm_plugin.runners.loaders import LoaderSettings, evaluation_loader
    batches = iter(evaluation_loader(list(range(8)), LoaderSettings(batch_size=2, num_workers=2), shared=False))
    for batch in batches:
        raise RuntimeError("inside the loop")
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    run = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=200)
    assert run.returncode == 1 and run.stderr.rstrip().endswith("inside the loop"), run.stderr


def kill_this_worker(*args):
    """In the place of torch's fetching of a batch."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_told_with_the_command_that_resumes(tmp_path, monkeypatch, caplog):
    from torch.utils.data._utils import fetch

    settings = {"valid_splits": [], "test_splits": [], "num_workers": 1}
    first = build_runner(tmp_path, max_epoch=1, **settings)
    first.train()
    monkeypatch.setattr(fetch._MapDatasetFetcher, "fetch", kill_this_worker)  # workers are forked: they have it too
    with (
        caplog.at_level("WARNING"),
        pytest.raises(LostProcessError, match=r"data was killed, .* run\.batch_size_train from 4 to 2"),
    ):
        build_runner(tmp_path, max_epoch=2, resume_ckpt_path="auto", **settings).train()
    resume = f"run.resume_ckpt_path={first.output_dir / 'checkpoint_latest.pth'}"
    assert [line for line in caplog.messages if line.startswith("Stopped. ") and line.endswith(resume)]

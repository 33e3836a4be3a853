"""A training that is killed (SIGKILL) between a line and its checkpoint: after a resume each line stands once."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gitllm_plugin.host import launch
from gitllm_plugin.modeling.build import BuildSettings, build_git_llm
from gitllm_plugin.modeling.folder import save_folder
from gitllm_plugin.runners.length import Position
from gitllm_plugin.runners.records import note_tested, take_out_lost_lines, written_sizes
from tests.benchmark_files import write_benchmarks
from tests.small_run import ENVIRONMENT, ROOT, write_small_run

KILLED_RUN = ROOT / "tests" / "runners" / "killed_run.py"
LOGGED = ["train_loss", "val_loss", "train_loss", "val_loss", "test_loss"]
"""The lines of LAVIS's log over two epochs, each by one of its keys."""


def logged(folder: Path) -> list[str]:
    lines = [line for line in (folder / "log.txt").read_text().splitlines() if line.startswith('{"')]
    return [next(key for key in json.loads(line) if key.endswith("_loss")) for line in lines]


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def shown(folder: Path) -> dict[str, list[int]]:
    """What TensorBoard shows: the steps of each curve of losses."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    names = [name for name in events.Tags()["scalars"] if name.endswith("/loss")]
    return {name: [event.step for event in events.Scalars(name)] for name in names}


def start_and_kill(place: str, number: int, config: Path, options: list[str], **environment: str) -> None:
    command = [sys.executable, str(KILLED_RUN), place, str(number), "train", "--cfg-path", str(config), "--options"]
    environment = {**ENVIRONMENT, **environment}
    killed = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, timeout=200)
    assert killed.returncode == -signal.SIGKILL, killed.stderr


@pytest.mark.parametrize(
    ("place", "number"),
    [
        ("logged", 3),  # an epoch's averages, before its checkpoint
        ("stepped", 5),  # a step behind a checkpoint
        pytest.param("stepped", 3, marks=pytest.mark.slow),  # the last of an epoch
        pytest.param("logged", 2, marks=pytest.mark.slow),  # a validation, before it is known to be done
        pytest.param("logged", 5, marks=pytest.mark.slow),  # the test
        pytest.param("noted", 2, marks=pytest.mark.slow),
    ],
)
def test_each_line_of_a_killed_run_stands_once(tmp_path, place, number):
    config = write_small_run(tmp_path)
    options = ["run.resume_ckpt_path=auto", "run.save_every_steps=2", "run.trackers=[tensorboard]"]
    start_and_kill(place, number, config, options)
    folder = (tmp_path / "output" / "latest").resolve()
    # A clock that was set back: the killed run's file stands behind the resumed one's.
    for events in (folder / "tensorboard").iterdir():
        events.rename(events.with_name("events.out.tfevents.9999999999.host.1.0"))
    launch.train(config, options)
    assert (tmp_path / "output" / "latest").resolve() == folder
    count = len(steps(folder))
    assert steps(folder) == list(range(count))
    assert logged(folder) == LOGGED
    ends = [count // 2, count]
    assert shown(folder) == {"train/loss": list(range(1, count + 1)), "val/loss": ends, "test/loss": [count]}
    # A finished run loses nothing when it is taken up again: nothing is left to do, then one more epoch.
    launch.train(config, options)
    assert logged(folder) == LOGGED
    launch.train(config, [*options, "run.max_epoch=3"])
    assert logged(folder) == [*LOGGED, "train_loss", "val_loss", "test_loss"]
    assert shown(folder)["test/loss"] == [count, count * 3 // 2]


@pytest.mark.slow
def test_each_score_of_a_hosts_task_stands_once(tmp_path, monkeypatch):
    write_benchmarks(tmp_path / "data")
    model, tokenizer = build_git_llm("tiny:llama", "tiny:clip", BuildSettings(trainable="proj"))
    save_folder(model, tmp_path / "model", tokenizer=tokenizer)
    places = {"LAVIS_DATA": str(tmp_path / "data"), "GITLLM_MODEL": str(tmp_path / "model")}
    small = [f"datasets.coco_vqa.vis_processor.{phase}.image_size=32" for phase in ("train", "eval")]
    length = ["run.batch_size_train=5", "run.max_epoch=2", "run.warmup_steps=0", "run.num_workers=0"]
    fixed = ["run.device=cpu", "run.precision=fp32", f"run.output_dir={tmp_path / 'output'}"]
    options = [*small, *length, *fixed, "run.resume_ckpt_path=auto"]
    config = ROOT / "projects" / "git_llm" / "train" / "vqav2.yaml"
    start_and_kill("scored", 2, config, options, **places)
    folder = (tmp_path / "output" / "latest").resolve()
    assert len((folder / "evaluate.txt").read_text().splitlines()) == 2
    for name, place in places.items():
        monkeypatch.setenv(name, place)
    runner = launch.train(config, options)
    assert runner.output_dir == folder
    epochs = 2 + len(runner.test_splits)
    assert len((folder / "evaluate.txt").read_text().splitlines()) == epochs


def test_lines_are_cut_off_behind_what_a_checkpoint_has_seen(tmp_path):
    log, scores, metrics = (tmp_path / name for name in ("log.txt", "evaluate.txt", "metrics.jsonl"))
    log.write_text("{\n    a config\n}\n")
    metrics.write_text('{"step": 0}\n')
    sizes = written_sizes(tmp_path)
    assert sizes["evaluate.txt"] == 0
    before = log.read_text()
    with open(log, "a") as file:
        file.write('{"train_loss": "1"}\n{"val')
    scores.write_text('{"val": {"CIDEr": 1.0}}\n')
    take_out_lost_lines(tmp_path, sizes, Position(iters=1))
    assert (log.read_text(), scores.read_text(), metrics.read_text()) == (before, "", '{"step": 0}\n')


def test_a_finished_test_is_kept_and_another_positions_is_not(tmp_path):
    scores = tmp_path / "evaluate.txt"
    sizes = written_sizes(tmp_path)
    scores.write_text('{"test": 1}\n')
    note_tested(tmp_path, Position(iters=8), ["test"])
    with open(scores, "a") as file:
        file.write('{"test": 2}\n')
    take_out_lost_lines(tmp_path, sizes, Position(iters=8))
    assert scores.read_text() == '{"test": 1}\n'
    take_out_lost_lines(tmp_path, sizes, Position(iters=4))
    assert scores.read_text() == ""


@pytest.mark.parametrize("sizes", [{}, {"log.txt": None}, {"log.txt": -1}, {"log.txt": 10**30}, {"log.txt": True}])
def test_sizes_that_say_nothing_take_nothing_away(tmp_path, sizes):
    (tmp_path / "log.txt").write_text("one\ntwo\n")
    take_out_lost_lines(tmp_path, sizes, Position())
    assert (tmp_path / "log.txt").read_text() == "one\ntwo\n"


def test_a_size_within_a_line_leaves_whole_lines(tmp_path):
    (tmp_path / "log.txt").write_text("one\ntwo\nthree\n")
    take_out_lost_lines(tmp_path, {"log.txt": 6}, Position())
    assert (tmp_path / "log.txt").read_text() == "one\n"

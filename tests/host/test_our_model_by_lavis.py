"""LAVIS's own runners train, validate, resume and test our model, whatever the scores: below zero, zero, or none."""

import json
import logging
import math
from pathlib import Path

import pytest
import torch

from gitllm_plugin.host import launch
from tests.host.scripts import scored_task
from tests.host.test_runners_on_cpu import RUN
from tests.small_run import TINY_LORA, write_small_run

SCRIPT = Path(__file__).parent / "scripts" / "scored_task.py"
KINDS = ("runner_base", "runner_iter")
EPOCHS = 2
STEPS = 3  # an epoch: 12 pictures, 4 a step


@pytest.fixture(autouse=True)
def paths(monkeypatch):
    """What LAVIS registers once a process."""
    for name in ("paths", "task_name_mapping"):
        monkeypatch.setitem(scored_task.registry.mapping, name, dict(scored_task.registry.mapping[name]))


def config_of(folder, kind, **run):
    node = {**RUN, "max_iters": EPOCHS * STEPS, "iters_per_inner_epoch": STEPS, "valid_splits": ["val"]}
    given = {**node, "runner": kind, "task": "scored", "test_splits": ["test"], "metrics": ["exact_match"], **run}
    return write_small_run(folder, TINY_LORA, **given)


def resumed_at(checkpoint, epochs):
    return [f"run.resume_ckpt_path={checkpoint}", f"run.max_epoch={epochs}", f"run.max_iters={epochs * STEPS}"]


def log_of(runner, split):
    lines = (Path(runner.output_dir) / "log.txt").read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith(f'{{"{split}_')]


def loss_at_the_end(folder):
    """The test's loss."""
    return json.loads((Path(folder) / "test_metrics.json").read_text())["loss"]


def evaluated(config, checkpoint, tmp_path):
    """What an evaluation of a checkpoint says."""
    scored_task.forget_folders()
    options = ["model.load_finetuned=true", f"model.finetuned={checkpoint}", f"run.output_dir={tmp_path / 'alone'}"]
    runner = launch.evaluate(config, [*options, "run.runner=runner_base", "run.task=m3it"])
    return loss_at_the_end(runner.output_dir)


def weights(checkpoint):
    return torch.load(checkpoint, weights_only=True)["model"]


def same_weights(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("kind", "scores"),
    [
        ("runner_base", [-0.7]),
        slow("runner_base", [0.0]),
        slow("runner_base", [None]),
        slow("runner_iter", [-0.7]),
        slow("runner_iter", [0.0]),
        ("runner_iter", [None]),
    ],
)
def test_it_is_trained_validated_tested_and_resumed(kind, scores, tmp_path, caplog):
    config = config_of(tmp_path, kind)
    with caplog.at_level(logging.WARNING):
        runner = scored_task.train(config, [], scores)
    train = log_of(runner, "train")
    assert len(train) == EPOCHS and float(train[1]["train_loss"]) < float(train[0]["train_loss"])
    validated = log_of(runner, "val")
    assert [line["val_agg_metrics"] for line in validated] == scores * EPOCHS
    absent = scores == [None]
    last = f"checkpoint_{EPOCHS - 1 if kind == 'runner_base' else EPOCHS * STEPS}.pth"
    checkpoint = runner.output_dir / (last if absent else "checkpoint_best.pth")
    assert ("the weights of the end are kept" in caplog.text) == absent
    # The best is the first of equals, and runner_base tests it; runner_iter tests the weights of the end.
    test_loss = loss_at_the_end(runner.output_dir)
    assert (evaluated(config, checkpoint, tmp_path) == test_loss) == (absent or kind == "runner_base")

    again = scored_task.train(config, resumed_at(checkpoint, 3), scores)
    left = 3 - (EPOCHS if absent else 1)
    trained = log_of(again, "train")[-left:]
    assert float(trained[-1]["train_loss"]) < float(train[0]["train_loss"])
    assert math.isfinite(loss_at_the_end(again.output_dir))


@pytest.mark.parametrize(
    ("kind", "run"),
    [
        ("runner_base", {"metrics": []}),
        slow("runner_base", {"agg_metric": "loss"}),
        slow("runner_iter", {"metrics": []}),
        slow("runner_iter", {"agg_metric": "loss"}),
    ],
)
def test_the_lowest_loss_is_the_best(kind, run, tmp_path):
    config = config_of(tmp_path, kind, **run)
    runner = scored_task.train(config, ["run.init_lr=0.3"], [])  # so high that some epoch is worse than another
    validated = log_of(runner, "val")
    scores = [line["val_agg_metrics"] for line in validated]
    assert all(line["val_agg_metrics"] == -line["val_loss"] for line in validated) and len(set(scores)) == EPOCHS
    assert validated[-1]["val_best_agg_metrics"] == max(scores)
    place = scores.index(max(scores))
    named = validated[-1]["val_best_epoch" if kind == "runner_base" else "val_best_iters"]
    assert named == (place if kind == "runner_base" else STEPS * (place + 1))
    loss = evaluated(config, runner.output_dir / "checkpoint_best.pth", tmp_path)
    assert (loss == loss_at_the_end(runner.output_dir)) == (kind == "runner_base" or place == EPOCHS - 1)


@pytest.mark.slow  # the same with stand-ins: test_training_by_lavis.py
@pytest.mark.parametrize(("before", "after"), [(-0.7, -0.9), (0.0, -0.1), (0.5, 0.25)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_training_keeps_its_earlier_best(kind, before, after, tmp_path):
    config = config_of(tmp_path, kind)
    first = scored_task.train(config, [f"run.output_dir={tmp_path / 'first'}"], [before])
    best = first.output_dir / "checkpoint_best.pth"
    kept = weights(best)
    again = scored_task.train(config, [f"run.output_dir={tmp_path / 'again'}", *resumed_at(best, 3)], [after])
    assert same_weights(weights(again.output_dir / "checkpoint_best.pth"), kept)
    assert again.output_dir != first.output_dir
    if kind == "runner_base":
        assert loss_at_the_end(again.output_dir) == loss_at_the_end(first.output_dir)
    better = scored_task.train(config, [f"run.output_dir={tmp_path / 'better'}", *resumed_at(best, 3)], [before + 0.1])
    assert not same_weights(weights(better.output_dir / "checkpoint_best.pth"), kept)


@pytest.mark.slow
@pytest.mark.parametrize("score", [-0.7, 0.0, None])
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_and_resume(kind, score, run_python, tmp_path):
    config = str(config_of(tmp_path, kind, batch_size_train=2))
    name = "checkpoint_best.pth"
    if score is None:
        name = f"checkpoint_{EPOCHS - 1 if kind == 'runner_base' else EPOCHS * STEPS}.pth"
    torchrun = ["-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    runs = [
        (tmp_path / "first", [], [score]),
        (
            tmp_path / "again",
            ["run.max_epoch=3", f"run.max_iters={3 * STEPS}"],
            [None if score is None else score - 0.1],
        ),
    ]
    found = None
    for folder, options, scores in runs:
        more = [f"run.output_dir={folder}", *options, *([f"run.resume_ckpt_path={found}"] if found else [])]
        given = json.dumps({"config": config, "options": more, "scores": scores})
        finished = run_python(args=[*torchrun, str(SCRIPT), given])
        assert finished.returncode == 0, finished.stderr[-3000:]
        expected = name if found is None or score is not None else name.replace("1", "2").replace("6", "9")
        (found,) = folder.rglob(expected)
        (tested,) = folder.rglob("test_metrics.json")
        assert math.isfinite(json.loads(tested.read_text())["loss"])
    first, again = ((tmp_path / folder) for folder in ("first", "again"))
    if score is not None:
        (earlier,), (later,) = (list(folder.rglob(name)) for folder in (first, again))
        assert same_weights(weights(later), weights(earlier))

"""Checkpoints within epochs: when they are written, which are kept, and that a resumed run is the same run."""

import json
import os
import random
import signal
from pathlib import Path

import pytest
import torch
import webdataset as wds
from lavis.runners.runner_base import RunnerBase
from safetensors.torch import load_file
from tiny_run import RUN, TinyConfig, TinyData, TinyModel, build_runner

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.runners.checkpoints import CheckpointFolder, SavingTimes
from gitllm_plugin.runners.state import BestScores, random_state, restore_random_state, trainable_state

NO_EVALUATION = {"valid_splits": [], "test_splits": []}


def losses(folder) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class NoisyData(TinyData):
    """Items are augmented with random numbers from all three libraries."""

    def __getitem__(self, index):
        item = super().__getitem__(index)
        item["image"] = item["image"] + torch.rand(4) + random.random()
        return item


class Signalled:
    """A task's place, which sends this process a signal before a batch of the run is trained on."""

    def __init__(self, runner, number, before_batch):
        self.task, self.number, self.left = runner.task, number, before_batch
        runner.task = self

    def __getattr__(self, name):
        return getattr(self.task, name)

    def train_outputs(self, model, samples):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)
        return self.task.train_outputs(model, samples)


def noisy(**changes) -> dict:
    """Arguments of a run in which everything draws random numbers."""
    data = {"train": NoisyData(24), "val": TinyData(7), "test": TinyData(9)}
    return {"data": data, "tiny": {"dropout": 0.3}, "max_epoch": 3, **changes}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_preempted_run_returns_and_goes_on_as_if_nothing_had_happened(tmp_path, caplog, number):
    whole = build_runner(tmp_path / "whole", **noisy())
    whole.train()
    cut = build_runner(tmp_path / "cut", **noisy())
    Signalled(cut, number, before_batch=9)
    cut.train()  # and no exception
    assert f"Stopped by {signal.Signals(number).name}" in caplog.text
    assert "holds the run after 9 iterations (3 of epoch 2). Resume with:\n  gitllm train" in caplog.text
    assert signal.getsignal(number) == signal.SIG_DFL
    assert len(losses(cut.output_dir)) == 9 and not (cut.output_dir / "test_metrics.json").exists()

    resumed = build_runner(tmp_path / "cut", **noisy(resume_ckpt_path="auto"))
    resumed.train()
    assert resumed.output_dir == cut.output_dir
    assert losses(resumed.output_dir) == losses(whole.output_dir)
    logs = [(run.output_dir / "log.txt").read_text().splitlines() for run in (resumed, whole)]
    averages = [[line for line in log if line.startswith('{"train_')] for log in logs]
    assert averages[0] == averages[1]
    for name, value in trainable_state(whole.model).items():
        assert torch.equal(trainable_state(resumed.model)[name], value), name


def test_a_signal_in_an_evaluation_ends_it_at_once_and_it_is_done_again(tmp_path):
    run = build_runner(tmp_path, max_epoch=1)
    evaluated = []
    original = run.task.evaluation

    def evaluation(*args, **kwargs):
        evaluated.append(True)
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    run.task.evaluation = evaluation
    run.train()
    assert len(evaluated) == 1 and not (run.output_dir / "val_metrics.json").exists()
    resumed = build_runner(tmp_path, max_epoch=1, resume_ckpt_path="auto")
    resumed.train()
    assert len(losses(run.output_dir)) == 4
    assert (run.output_dir / "val_metrics.json").exists() and (run.output_dir / "test_metrics.json").exists()


@pytest.mark.parametrize("workers", [(0, 2), (2, 1)])
def test_random_items_are_the_same_with_any_number_of_workers(tmp_path, workers):
    before, after = workers
    settings = {**NO_EVALUATION, "max_epoch": 2}
    whole = build_runner(tmp_path / "whole", **noisy(**settings))
    whole.train()
    Signalled(cut := build_runner(tmp_path / "cut", **noisy(num_workers=before, **settings)), signal.SIGTERM, 4)
    cut.train()
    build_runner(tmp_path / "cut", **noisy(num_workers=after, resume_ckpt_path="auto", **settings)).train()
    assert losses(cut.output_dir) == losses(whole.output_dir)


def test_checkpoints_by_steps_are_kept_as_asked_and_two_are_named(tmp_path):
    run = build_runner(tmp_path, tiny={"size": 24}, max_epoch=2, save_every_steps=4, keep_last=2, **NO_EVALUATION)
    run.train()
    assert names(run.output_dir / "checkpoints") == [
        "step_00000008.pth",
        "step_00000008.safetensors",
        "step_00000012.pth",
        "step_00000012.safetensors",
    ]
    latest = run.output_dir / "checkpoint_latest.pth"
    assert latest.samefile(run.output_dir / "checkpoints" / "step_00000012.pth")  # no second copy on disk
    content = torch.load(latest, weights_only=True)
    weights = load_file(latest.with_suffix(".safetensors"))
    assert weights.keys() == content["model"].keys()
    assert all(torch.equal(weights[name], value) for name, value in content["model"].items())


def test_the_best_ones_are_kept_beside_the_newest(tmp_path):
    run = build_runner(tmp_path, max_epoch=4, keep_last=1, keep_best=2, test_splits=[])
    scores = iter([-3.0, -1.0, -2.0, -4.0])
    run.eval_epoch = lambda split, epoch, **kwargs: {"agg_metrics": next(scores)}
    run.train()
    kept = names(run.output_dir / "checkpoints")
    assert [name for name in kept if name.endswith(".pth")] == [f"step_{n:08d}.pth" for n in (8, 12, 16)]
    best = run.output_dir / "checkpoint_best.pth"
    assert best.samefile(run.output_dir / "checkpoints" / "step_00000008.pth")
    assert (run.best_agg_metric, run.best_epoch) == (-1.0, 1)
    assert torch.load(best, weights_only=True)["best_agg_metric"] == -1.0


def test_the_smallest_score_can_be_the_best(tmp_path):
    run = build_runner(tmp_path, max_epoch=3, best="min", test_splits=[])
    scores = iter([2.0, 0.5, 1.0])
    run.eval_epoch = lambda split, epoch, **kwargs: {"agg_metrics": next(scores)}
    run.train()
    assert (run.best_agg_metric, run.best_epoch) == (0.5, 1)
    resumed = build_runner(tmp_path, max_epoch=4, best="min", test_splits=[], resume_ckpt_path="auto")
    resumed.eval_epoch = lambda split, epoch, **kwargs: {"agg_metrics": 0.7}
    resumed.train()
    assert (resumed.best_agg_metric, resumed.best_epoch) == (0.5, 1)


def test_best_scores():
    best = BestScores("max", keep=2)
    assert best.add(-5.0, epoch=0, steps=10)
    assert not best.add(float("nan"), epoch=1, steps=20)
    assert not best.add(-5.0, epoch=2, steps=30)  # of equal ones the first
    assert best.add(-4.0, epoch=3, steps=40)
    assert best.steps == [40, 10]
    assert best.add(-4.0, epoch=3, steps=40) and best.steps == [40, 10]  # evaluated again


def test_checkpoints_by_minutes():
    now = [0.0]
    times = SavingTimes(every_minutes=2, clock=lambda: now[0])
    now[0] = 119.0
    assert not times.by_minutes()
    now[0] = 120.0
    assert times.by_minutes()
    times.note_saved()
    assert not times.by_minutes() and not times.by_steps(7)
    assert not SavingTimes().by_minutes()


def test_minutes_save_within_an_epoch(tmp_path, monkeypatch):
    written = []
    write = CheckpointFolder.write
    monkeypatch.setattr(CheckpointFolder, "write", lambda *args: (written.append(args[1]["steps"]), write(*args))[1])
    build_runner(tmp_path, max_epoch=1, save_every_minutes=0, **NO_EVALUATION).train()
    assert written[0] == 1


@pytest.mark.parametrize("ending", ["host.123.partial", "123.writing"], ids=["now", "version 0.1.0"])
def test_what_a_killed_process_half_wrote_is_removed(tmp_path, ending):
    run = build_runner(tmp_path, max_epoch=1, **NO_EVALUATION)
    run.train()
    half = run.output_dir / "checkpoints" / f".step_00000005.pth.{ending}"
    half.write_bytes(b"half")
    build_runner(tmp_path, max_epoch=2, resume_ckpt_path="auto", **NO_EVALUATION).train()
    assert not half.exists()


def test_the_best_keeps_its_name_when_the_process_died_before_it_was_given(tmp_path):
    run = build_runner(tmp_path, max_epoch=1, agg_metric="loss")
    run.train()
    best = run.output_dir / "checkpoint_best.pth"
    best.unlink()
    build_runner(tmp_path, max_epoch=1, agg_metric="loss", resume_ckpt_path="auto").train()
    assert best.samefile(run.output_dir / "checkpoint_latest.pth")


def test_generators_go_on_where_they_were(tmp_path):
    torch.save(random_state(), tmp_path / "state")
    drawn = [random.random(), float(torch.rand(1))]
    restore_random_state(torch.load(tmp_path / "state", weights_only=True))
    assert [random.random(), float(torch.rand(1))] == drawn


class HostRunner(RunnerBase):
    """LAVIS's own, as far as its checkpoints go: on a CPU it cannot give its model."""

    def setup_output_dir(self):
        self.output_dir = Path(self.config.run_cfg.output_dir)

    model = property(lambda self: self._model)


def host_runner(folder) -> HostRunner:
    folder.mkdir()
    run = {**RUN, "runner": "runner_base", "output_dir": str(folder), "distributed": False, "weight_decay": 0.05}
    run["max_epoch"] = 3  # else nothing would be left to train
    return HostRunner(TinyConfig(run), task=None, model=trained_whole(), datasets={}, job_id="")


def trained_whole() -> TinyModel:
    """LAVIS's runners resume only models that are trained as a whole."""
    model = TinyModel()
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return model.requires_grad_(True)


def test_lavis_resumes_our_checkpoints_and_we_resume_its(tmp_path):
    ours = build_runner(tmp_path, model=trained_whole(), max_epoch=2, **NO_EVALUATION)
    ours.train()
    host = host_runner(tmp_path / "host")
    host._load_checkpoint(str(ours.output_dir / "checkpoint_latest.pth"))
    assert host.start_epoch == 2
    for name, value in ours.model.state_dict().items():
        assert torch.equal(host.model.state_dict()[name], value)

    host._save_checkpoint(1)
    settings = {"max_epoch": 3, "resume_ckpt_path": str(tmp_path / "host"), **NO_EVALUATION}
    resumed = build_runner(tmp_path, model=trained_whole(), **settings)
    resumed.train()
    assert (resumed.position.epoch, resumed.position.iters) == (3, 12)


def test_a_checkpoint_with_frozen_weights_too_as_runner_iter_writes_it(tmp_path):
    run = build_runner(tmp_path, max_epoch=1, **NO_EVALUATION)
    run.train()
    content = torch.load(run.output_dir / "checkpoint_latest.pth", weights_only=True)
    weights = run.model.state_dict()
    assert weights.keys() > content["model"].keys()
    path = tmp_path / "checkpoint_4.pth"
    torch.save({"model": weights, "optimizer": content["optimizer"], "config": {}, "scaler": None, "iters": 4}, path)
    resumed = build_runner(tmp_path, max_epoch=2, resume_ckpt_path=str(path), **NO_EVALUATION)
    resumed.train()
    assert resumed.position.iters == 8

    torch.save({"model": {**weights, "embedding.weight": torch.zeros(5, 8)}, "optimizer": {}, "iters": 4}, path)
    with pytest.raises(ConfigError, match="not in the model: embedding.weight"):
        build_runner(tmp_path, resume_ckpt_path=str(path), **NO_EVALUATION).train()


def stream(state=True):
    """Endless examples with, or without, a place to go on from."""

    class Stream(wds.DataPipeline):
        taken = start = 0

        def note_batch(self, batch):
            self.taken += len(batch["text_input"])

        def state_dict(self):
            return {"taken": self.taken}

        def load_state_dict(self, state):
            self.taken = self.start = state["taken"]

    data = TinyData(16)
    keys = ("image", "text_input", "text_output", "instance_id", "question")
    pipeline = Stream(lambda: ({key: data[i % 16][key] for key in keys} for i in range(pipeline.start, 10_000)))
    return pipeline if state else wds.DataPipeline(*pipeline.pipeline)


STREAM = {"max_epoch": None, "max_iters": 10, "iters_per_inner_epoch": 4, "tiny": {"dropout": 0.2}, **NO_EVALUATION}


def test_a_stream_goes_on_at_the_next_sample(tmp_path):
    whole = build_runner(tmp_path / "whole", data={"train": stream()}, **STREAM)
    whole.train()
    Signalled(cut := build_runner(tmp_path / "cut", data={"train": stream()}, **STREAM), signal.SIGTERM, 6)
    cut.train()
    content = torch.load(cut.output_dir / "checkpoint_latest.pth", weights_only=True)
    assert content["data"] == [{"taken": 24}]  # and not what was read ahead
    build_runner(tmp_path / "cut", data={"train": stream()}, resume_ckpt_path="auto", **STREAM).train()
    assert losses(cut.output_dir) == losses(whole.output_dir)


def test_a_stream_without_a_place_starts_over_and_says_so(tmp_path, caplog):
    Signalled(cut := build_runner(tmp_path, data={"train": stream(False)}, **STREAM), signal.SIGTERM, 2)
    cut.train()
    build_runner(tmp_path, data={"train": stream(False)}, resume_ckpt_path="auto", **STREAM).train()
    assert "starts from its beginning" in caplog.text


def mixed(tmp_path, **changes):
    """A runner over a map-style data set and a stream."""
    runner = build_runner(tmp_path, data={"train": TinyData(12)}, **{**STREAM, **changes})
    runner.parts.datasets["stream"] = {"train": stream()}
    return runner


@pytest.mark.parametrize("ratios", [None, {"tiny": 3, "stream": 1}])
def test_a_mixture_of_both_kinds_goes_on_at_the_next_sample_of_each(tmp_path, ratios):
    settings = {"train_dataset_ratios": ratios, "max_iters": 16}
    mixed(tmp_path / "whole", **settings).train()
    Signalled(cut := mixed(tmp_path / "cut", **settings), signal.SIGTERM, 9)
    cut.train()
    mixed(tmp_path / "cut", resume_ckpt_path="auto", **settings).train()
    whole = losses((tmp_path / "whole" / "latest").resolve())
    assert len(whole) == 16 and losses(cut.output_dir) == whole


def test_ratios_name_the_data_sets(tmp_path):
    with pytest.raises(ConfigError, match="names tiny, strem, but the data sets with a split 'train' are tiny, stream"):
        mixed(tmp_path, train_dataset_ratios={"tiny": 1, "strem": 1}).train()

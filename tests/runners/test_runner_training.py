"""Training, evaluation, checkpoints and resuming in one process."""

import json
import logging
from pathlib import Path

import pytest
import torch
import webdataset as wds
from lavis.tasks.base_task import BaseTask
from tiny_run import TinyData, TinyModel, build_runner

from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.runners.loop import NonFiniteLossError
from gitllm_plugin.runners.state import trainable_state


def steps(runner) -> list[dict]:
    """The records of `metrics.jsonl`."""
    return [json.loads(line) for line in (Path(runner.output_dir) / "metrics.jsonl").read_text().splitlines()]


def losses(runner) -> list[float]:
    """The loss of every step."""
    return [record["loss"] for record in steps(runner)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_on_cpu_lowers_the_loss_and_writes_what_lavis_writes(tmp_path, precision):
    runner = build_runner(tmp_path, precision=precision, max_epoch=6)
    runner.train()

    recorded = losses(runner)
    assert len(recorded) == 6 * 4
    assert sum(recorded[-4:]) < 0.5 * sum(recorded[:4])
    text = (runner.output_dir / "log.txt").read_text()
    config, end = json.JSONDecoder().raw_decode(text)
    assert config["run"]["precision"] == precision
    lines = [json.loads(line) for line in text[end:].strip().splitlines()]
    assert [sorted(line) for line in lines[:1]] == [["train_loss", "train_lr"]]
    assert isinstance(lines[0]["train_loss"], str)
    assert {"val_exact_match", "val_loss", "val_agg_metrics", "val_best_epoch"} <= set(lines[1])
    assert "test_even/exact_match" in lines[-1]


def test_the_folder_says_how_it_was_made(tmp_path):
    runner = build_runner(tmp_path, max_epoch=1)
    runner.train()
    versions = json.loads((runner.output_dir / "versions.json").read_text())
    assert versions["torch"] == torch.__version__
    assert "num_workers: 0" in (runner.output_dir / "config.yaml").read_text()
    assert (tmp_path / "latest").resolve() == runner.output_dir
    assert sorted(path.name for path in (runner.output_dir / "result").iterdir()) == [
        "test_epochbest.jsonl",
        "val_epoch1.jsonl",
    ]


def test_checkpoints_hold_trainable_weights_only_and_load_safely(tmp_path):
    runner = build_runner(tmp_path, max_epoch=1)
    runner.train()
    for name in ("checkpoint_best.pth", "checkpoint_latest.pth"):
        content = torch.load(runner.output_dir / name, weights_only=True)
        assert set(content["model"]) == {"projection.weight", "projection.bias", "text"}
        assert content["epoch"] == 0 and content["iters"] == 4

    fresh = TinyModel()
    fresh.load_checkpoint(str(runner.output_dir / "checkpoint_best.pth"))
    for name, value in trainable_state(runner.unwrap_dist_model(runner.model)).items():
        assert torch.equal(fresh.state_dict()[name], value)
    assert not [path for path in runner.output_dir.rglob(".*")]


def test_resuming_gives_the_losses_of_the_uninterrupted_run(tmp_path):
    whole = build_runner(tmp_path / "whole", max_epoch=3, warmup_steps=2)
    whole.train()
    first = build_runner(tmp_path / "parts", max_epoch=3, warmup_steps=2)
    first._prepare_training()
    first.train_epoch(0)
    first.progress.validation_due = True
    first._save_checkpoint(0)

    resumed = build_runner(tmp_path / "parts", max_epoch=3, warmup_steps=2, resume_ckpt_path="auto")
    resumed.train()

    assert resumed.output_dir == first.output_dir
    assert losses(resumed) == losses(whole)
    assert [record["lr"] for record in steps(resumed)] == [record["lr"] for record in steps(whole)]
    assert resumed.best_agg_metric == whole.best_agg_metric
    weights = trainable_state(resumed.unwrap_dist_model(resumed.model))
    for name, value in trainable_state(whole.unwrap_dist_model(whole.model)).items():
        assert torch.equal(weights[name], value), name


def test_a_finished_run_has_nothing_to_do(tmp_path, caplog):
    runner = build_runner(tmp_path, max_epoch=1)
    runner.train()
    with caplog.at_level(logging.INFO):
        build_runner(tmp_path, max_epoch=1, resume_ckpt_path=str(runner.output_dir)).train()
    assert "Nothing to do: 1 of 1 epochs" in caplog.text
    weights = runner.output_dir / "checkpoint_best.pth"
    options = f"run.init_lr=0.05 model.load_finetuned=True model.finetuned={weights}"
    assert f"gitllm evaluate --cfg-path tiny.yaml --options {options}" in caplog.text
    assert len(losses(runner)) == 4


def test_an_interrupted_final_test_is_run_when_resumed(tmp_path, monkeypatch, caplog):
    build_runner(tmp_path, max_epoch=1).train()  # its test metrics stay in the folder
    longer = build_runner(tmp_path, max_epoch=2, resume_ckpt_path="auto")

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(longer, "_test", interrupt)
    with pytest.raises(KeyboardInterrupt):
        longer.train()
    assert "Interrupted after training, in the test. Run it with:\n  gitllm train" in caplog.text
    (longer.output_dir / "test_metrics.json").unlink()

    resumed = build_runner(tmp_path, max_epoch=2, resume_ckpt_path="auto")
    resumed.train()
    assert json.loads((longer.output_dir / "test_metrics.json").read_text())["epoch"] == "best"
    assert len(losses(resumed)) == 8
    with caplog.at_level(logging.INFO):
        build_runner(tmp_path, max_epoch=2, resume_ckpt_path="auto").train()
    assert "Nothing to do" in caplog.text


@pytest.mark.parametrize(("before", "after"), [(4, 8), (8, 4)])
def test_resuming_with_another_batch_size_counts_by_epochs(tmp_path, caplog, before, after):
    settings = {"lr_sched": "linear", "valid_splits": [], "test_splits": []}
    build_runner(tmp_path, max_epoch=2, batch_size_train=before, **settings).train()
    resumed = build_runner(tmp_path, max_epoch=4, batch_size_train=after, resume_ckpt_path="auto", **settings)
    resumed.train()

    assert f"An epoch had {16 // before} iterations and now has {16 // after}" in caplog.text
    assert "training goes on with epoch 3." in caplog.text
    steps_per_epoch = 16 // after
    assert (resumed.position.iters, resumed.position.steps) == (4 * steps_per_epoch,) * 2
    recorded = steps(resumed)
    assert [record["epoch"] for record in recorded] == [
        *[0] * (16 // before), *[1] * (16 // before), *[2] * steps_per_epoch, *[3] * steps_per_epoch
    ]  # fmt: skip
    assert recorded[2 * 16 // before]["lr"] == pytest.approx(0.05 / 2)  # half of a linear decay is left


def test_resuming_within_an_epoch_with_another_batch_size_starts_it_anew(tmp_path, caplog):
    settings = {"max_epoch": None, "valid_splits": [], "test_splits": [], "resume_ckpt_path": "auto"}
    build_runner(tmp_path, max_iters=6, **settings).train()
    settings["max_epoch"] = 2
    resumed = build_runner(tmp_path, batch_size_train=8, **settings)
    resumed.train()
    assert "training goes on with epoch 2, which is started anew." in caplog.text
    assert resumed.position.iters == 4


def test_accumulating_more_batches_counts_fewer_steps(tmp_path):
    settings = {"valid_splits": [], "test_splits": [], "resume_ckpt_path": "auto"}
    build_runner(tmp_path, max_epoch=1, **settings).train()
    resumed = build_runner(tmp_path, max_epoch=2, accum_grad_iters=4, **settings)
    resumed.train()
    assert (resumed.position.iters, resumed.position.steps) == (8, 2)


def test_auto_resume_without_a_run_starts_one(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        build_runner(tmp_path, max_epoch=1, resume_ckpt_path="auto", test_splits=[]).train()
    assert "no run to resume" in caplog.text


def test_accumulated_batches_equal_one_large_batch(tmp_path):
    tiny = {"dropout": 0.0}
    large = build_runner(tmp_path / "a", tiny=tiny, batch_size_train=8)
    small = build_runner(tmp_path / "b", tiny=tiny, batch_size_train=4, accum_grad_iters=2)
    large.train()
    small.train()
    assert losses(small) == pytest.approx(losses(large), abs=1e-6)


def test_accumulation_uses_the_last_batches_of_an_epoch_too(tmp_path):
    runner = build_runner(tmp_path, batch_size_train=4, accum_grad_iters=3, max_epoch=1, test_splits=[])
    runner.train()
    assert [record["samples"] for record in steps(runner)] == [12, 4]


def test_max_iters_stops_within_an_epoch(tmp_path):
    settings = {"max_epoch": None, "max_iters": 6, "lr_sched": "constant", "tiny": {"dropout": 0.0}}
    runner = build_runner(tmp_path / "two parts", **settings)
    runner.train()
    assert [(record["epoch"], record["iter"]) for record in steps(runner)][-1] == (1, 6)
    assert runner.max_epoch == 2

    settings["max_iters"] = 9
    longer = build_runner(tmp_path / "two parts", resume_ckpt_path=str(runner.output_dir), **settings)
    longer.train()
    at_once = build_runner(tmp_path / "at once", **settings)
    at_once.train()
    assert losses(longer) == losses(at_once)
    assert [record["step"] for record in steps(longer)] == list(range(9))
    assert [record["epoch"] for record in steps(longer)] == [0] * 4 + [1] * 4 + [2]


def test_a_negative_score_can_be_the_best(tmp_path):
    runner = build_runner(tmp_path, max_epoch=1, agg_metric="loss")
    runner.train()
    assert runner.best_agg_metric < 0
    assert torch.load(runner.output_dir / "checkpoint_best.pth", weights_only=True)["best_epoch"] == 0


def test_without_validation_it_still_saves_and_tests(tmp_path):
    runner = build_runner(tmp_path, max_epoch=1, valid_splits=[])
    runner.train()
    assert (runner.output_dir / "checkpoint_latest.pth").is_file()
    assert (runner.output_dir / "result" / "test_epoch1.jsonl").is_file()


def test_evaluation_alone_gives_the_test_metrics(tmp_path):
    runner = build_runner(tmp_path, max_epoch=3)
    runner.train()
    tested = json.loads((runner.output_dir / "test_metrics.json").read_text())

    model = TinyModel()
    model.load_checkpoint(str(tmp_path / "latest" / "checkpoint_best.pth"))
    alone = build_runner(tmp_path, model=model, evaluate=True)
    logs = alone.evaluate(skip_reload=True)

    assert logs["test"]["loss"] == tested["loss"]
    assert logs["test"]["exact_match"] == tested["exact_match"]
    assert (tmp_path / "latest").resolve() == runner.output_dir
    assert (tmp_path / "latest_evaluation").resolve() == alone.output_dir


def test_the_output_folder_is_relative_to_where_the_user_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runners = [build_runner("out/here") for _ in range(3)]
    folders = {runner.output_dir for runner in runners}
    assert len(folders) == 3
    assert {folder.parent for folder in folders} == {tmp_path / "out" / "here"}


def test_batches_without_images_train(tmp_path):
    data = {"train": TinyData(8, text_only=True)}
    runner = build_runner(tmp_path, data=data, max_epoch=1, valid_splits=[], test_splits=[])
    runner.train()
    assert len(losses(runner)) == 2


def test_worker_processes_give_the_same_losses(tmp_path):
    tiny = {"dropout": 0.0}
    alone = build_runner(tmp_path / "a", tiny=tiny, max_epoch=1)
    helped = build_runner(tmp_path / "b", tiny=tiny, max_epoch=1, num_workers=1)
    alone.train()
    helped.train()
    assert losses(helped) == losses(alone)


@pytest.mark.parametrize("name", ["linear_warmup_cosine_lr", "linear_warmup_step_lr"])
def test_schedules_of_lavis_keep_working(tmp_path, name):
    run = {"lr_sched": name, "lr_decay_rate": 0.5, "warmup_steps": 2, "warmup_lr": 0.01, "min_lr": 0.0}
    runner = build_runner(tmp_path, test_splits=[], **run)
    runner.train()
    rates = [record["lr"] for record in steps(runner)]
    assert rates == pytest.approx([0.01, 0.03, 0.05, 0.05] + [0.025] * 4)


def test_a_loss_that_is_not_finite_stops_with_the_examples_and_keeps_the_weights(tmp_path):
    runner = build_runner(tmp_path, max_skipped_steps=2)
    with torch.no_grad():
        runner.model.text[0] = float("nan")
    with pytest.raises(NonFiniteLossError, match="3 steps in a row, up to iteration 3"):
        runner.train()


def test_an_empty_split_is_refused(tmp_path):
    data = {"train": TinyData(8), "val": TinyData(0)}
    with pytest.raises(DataError, match="'val' has no examples"):
        build_runner(tmp_path, data=data, test_splits=[]).train()


def test_a_batch_larger_than_the_data_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="has 16 items, fewer than one batch .*batch_size_train=32"):
        build_runner(tmp_path, batch_size_train=32).train()


def test_an_unknown_split_is_refused_before_training(tmp_path):
    with pytest.raises(ConfigError, match="'vall', but the data sets have: test, train, val"):
        build_runner(tmp_path, valid_splits=["vall"]).train()


def test_missing_settings_are_listed_together(tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)accum_grad_iters is 0.*init_lr is missing.*max_epoch"):
        build_runner(tmp_path, init_lr=None, max_epoch=None, accum_grad_iters=0).train()


def test_what_only_a_training_needs_is_said_apart_from_what_is_wrong(tmp_path):
    with pytest.raises(
        ConfigError, match=r"^The run cannot be started:\n  [^\n]*batch_size_eval[^\n]*\nTo be trained .*"
    ):
        build_runner(tmp_path, init_lr=None, batch_size_eval=0)
    evaluated = build_runner(tmp_path, init_lr=None)
    assert evaluated.evaluate().keys() == {"test"}
    with pytest.raises(ConfigError, match=r"^The run cannot be trained:\n  run.init_lr is missing"):
        evaluated.train()


@pytest.mark.parametrize("act", ["train", "evaluate"])
def test_the_hosts_attribute_of_the_data_turns_from_names_to_splits(tmp_path, act):
    runner = build_runner(tmp_path, max_epoch=1)
    assert runner.datasets.keys() == {"tiny"}
    getattr(runner, act)()
    assert runner.datasets.keys() == {"train", "val", "test"}


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [("device", "tpu", "auto, cpu, cuda"), ("precision", "fp8", "fp32"), ("lr_sched", "cosin", "cosine")],
)
def test_unknown_names_are_refused_with_the_known_ones(tmp_path, key, value, named):
    with pytest.raises(ConfigError, match=f"run.{key} is '{value}'.*{named}"):
        build_runner(tmp_path, **{key: value}).train()


def test_frozen_models_cannot_be_trained(tmp_path):
    model = TinyModel().requires_grad_(False)
    with pytest.raises(ConfigError, match="no trainable parameter"):
        build_runner(tmp_path, model=model).train()


def endless_stream(limit: int | None = None) -> wds.DataPipeline:
    """Examples one after the other, as a webdataset pipeline gives them; at most `limit`."""
    data = TinyData(16)
    keys = ("image", "text_input", "text_output", "instance_id", "question")
    indices = range(limit) if limit else range(10_000)
    return wds.DataPipeline(lambda: ({key: data[i % 16][key] for key in keys} for i in indices))


def test_streams_train_by_iterations(tmp_path):
    data = {"train": endless_stream()}
    runner = build_runner(tmp_path, data=data, max_epoch=None, max_iters=5, valid_splits=[], test_splits=[])
    runner.train()
    assert [record["samples"] for record in steps(runner)] == [4] * 5


def test_a_longer_stream_goes_on_where_the_shorter_one_ended(tmp_path):
    settings = {"max_epoch": None, "valid_splits": [], "test_splits": [], "resume_ckpt_path": "auto"}
    build_runner(tmp_path, data={"train": endless_stream()}, max_iters=5, **settings).train()
    longer = build_runner(tmp_path, data={"train": endless_stream()}, max_iters=9, **settings)
    longer.train()
    assert [record["iter"] for record in steps(longer)] == list(range(1, 10))


def test_a_stream_that_ends_too_early_is_refused(tmp_path):
    data = {"train": endless_stream(limit=8)}
    runner = build_runner(tmp_path, data=data, max_epoch=None, max_iters=5, valid_splits=[], test_splits=[])
    with pytest.raises(DataError, match="ended in epoch 1 after 2 iterations"):
        runner.train()


class HostTask(BaseTask):
    """A task as LAVIS's own are: no counts of tokens, the host's evaluation, means of its own."""

    def valid_step(self, model, samples):
        assert samples["image"].device == model.device
        return [float(model(samples)["loss"])]

    def after_evaluation(self, val_result, split_name, epoch, **kwargs):
        return {"agg_metrics": -sum(val_result) / len(val_result)}


def test_tasks_of_the_host_train_and_evaluate(tmp_path):
    runner = build_runner(tmp_path, max_epoch=3)
    runner.task = HostTask()
    runner.train()
    assert len(losses(runner)) == 12
    assert runner.best_agg_metric < 0

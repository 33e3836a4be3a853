"""Which run is gone on with: that of this configuration, from its most steps, whatever clocks and copies say."""

import logging
import os
import shutil

import pytest
import torch
from tiny_run import TinyData, build_runner

from gitllm_plugin.common.weights import read_checkpoint, write_checkpoint
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.host import launch
from gitllm_plugin.runners.checkpoints import CheckpointFolder, find_resume_point
from gitllm_plugin.runners.same_run import differences
from tests.m3it_files import write_m3it_jsonl
from tests.m3it_shards import make_groups, write_shards
from tests.small_run import write_small_run

NO_EVALUATION = {"valid_splits": [], "test_splits": []}


def content(steps: int) -> dict:
    return {"model": {"w": torch.full((2,), float(steps))}, "steps": steps}


def taken(folder) -> int:
    return read_checkpoint(find_resume_point("auto", folder))["steps"]


def numbers(run) -> list[int]:
    return sorted(int(path.stem.removeprefix("step_")) for path in (run / "checkpoints").glob("*.pth"))


# ---------------------------------------------------------------------------------------------- the newest


@pytest.mark.parametrize("times", ["backwards", "equal", "as they were"])
def test_the_newest_checkpoint_has_most_steps(tmp_path, times):
    run = tmp_path / "20260101000000"
    run.mkdir()
    folder = CheckpointFolder(run, keep_last=3)
    for steps in (2, 9, 10, 99_999_999, 100_000_000, 1_000_000_001):
        folder.write(content(steps), [])
        for file in run.rglob("*.pth"):
            known = read_checkpoint(file)["steps"]
            moment = {"backwards": 2_000_000_000 - known, "equal": 1_700_000_000}.get(times)
            if moment is not None:
                os.utime(file, (moment, moment))
    assert numbers(run) == [99_999_999, 100_000_000, 1_000_000_001]
    assert taken(tmp_path) == 1_000_000_001 == read_checkpoint(folder.latest)["steps"]
    assert find_resume_point(str(run), tmp_path) == folder.latest


def test_a_copied_run_without_links_and_with_copies_of_files(tmp_path):
    """As `cp -r` makes it: names of one file are files of their own, and times are those of the copy."""
    run = tmp_path / "original"
    run.mkdir()
    folder = CheckpointFolder(run, keep_last=2)
    for steps in (4, 8):
        folder.write(content(steps), [4])
    shutil.copytree(run, tmp_path / "runs" / "20260101000000", copy_function=shutil.copyfile)
    copy = tmp_path / "runs" / "20260101000000"
    shutil.copyfile(copy / "checkpoints" / "step_00000004.pth", copy / "checkpoints" / "step_00000008 (copy).pth")
    shutil.copyfile(copy / "checkpoints" / "step_00000004.pth", copy / "checkpoints" / "step_99999999.pth")  # renamed
    assert taken(tmp_path / "runs") == 8
    (copy / "checkpoint_latest.pth").unlink()
    assert taken(tmp_path / "runs") == 8


@pytest.mark.parametrize("steps", [7, 12, 20])
def test_what_came_after_an_earlier_checkpoint_that_was_resumed_is_not_the_newest(tmp_path, steps):
    run = tmp_path / "20260101000000"
    run.mkdir()
    for done in (5, 10, 20, 30):
        CheckpointFolder(run, keep_last=4).write(content(done), [])
    CheckpointFolder(run, keep_last=2).write(content(steps), [])  # resumed from 5 or 10, say
    assert taken(tmp_path) == steps
    assert max(numbers(run)) == steps and len(numbers(run)) == 2


@pytest.mark.parametrize(
    ("names", "link", "expected"),
    [
        (["20260101000000", "20260102000000"], None, 1),
        (["20260101000000_9", "20260101000000_10"], None, 1),
        (["20260101000000", "20260102000000"], 0, 0),  # resumed later than the other was started
        (["20260101000000", "zzz"], None, 0),
    ],
)
def test_the_newest_run_is_told_by_link_and_name(tmp_path, names, link, expected):
    for number, name in enumerate(names):
        (tmp_path / name).mkdir()
        CheckpointFolder(tmp_path / name).write(content(number), [])
        for file in (tmp_path / name).rglob("*.pth"):
            os.utime(file, (2_000_000_000 - number, 2_000_000_000 - number))
    if link is not None:
        (tmp_path / "latest").symlink_to(names[link])
    assert taken(tmp_path) == expected


def test_damaged_ones_are_passed_over_by_their_checksums(tmp_path, caplog):
    run = tmp_path / "20260101000000"
    run.mkdir()
    for steps in (1, 2, 3):
        CheckpointFolder(run, keep_last=3).write(content(steps), [])
    (run / "checkpoint_latest.pth").unlink()
    third = run / "checkpoints" / "step_00000003.pth"
    data = third.read_bytes()
    place = data.index(torch.full((2,), 3.0).numpy().tobytes())
    third.write_bytes(data[:place] + b"\x01" + data[place + 1 :])
    assert taken(tmp_path) == 2
    assert "step_00000003.pth is damaged" in caplog.text


# ---------------------------------------------------------------------------------------------- the same run

CHANGES = [
    ({"seed": 8}, "run.seed was 42 and is 8"),
    ({"init_lr": 0.01}, "run.init_lr was 0.05 and is 0.01"),
    ({"weight_decay": 0.0}, "run.weight_decay was 0.05 and is 0.0"),
    ({"max_grad_norm": 0.0}, "run.max_grad_norm was 1.0 and is 0.0"),
    ({"lr_sched": "constant"}, "run.lr_sched was 'cosine' and is 'constant'"),
    ({"precision": "bf16"}, "run.precision was 'fp32' and is 'bf16'"),
    ({"tiny": {"size": 12}}, "the data tiny.train was 16 items and is 12 items"),
]
LAWFUL = [
    {"max_epoch": 3},
    {"max_epoch": None, "max_iters": 10},
    {"num_workers": 1},
    {"save_every_steps": 1, "keep_last": 5},
    {"valid_splits": ["val"], "metrics": [], "best": "min"},
    {"batch_size_train": 2, "accum_grad_iters": 2},
    {"batch_size_train": 8},
    {"batch_size_eval": 1, "log_freq": 3, "step_timeout_minutes": 5},
    {"init_lr": "5e-2"},
]


@pytest.fixture
def done(tmp_path):
    run = build_runner(tmp_path, max_epoch=1, **NO_EVALUATION)
    run.train()
    return run.output_dir


@pytest.mark.parametrize(("change", "said"), CHANGES)
def test_another_experiment_gets_a_run_of_its_own_and_is_told_why(tmp_path, done, caplog, change, said):
    run = build_runner(tmp_path, resume_ckpt_path="auto", **{"max_epoch": 2, **NO_EVALUATION, **change})
    assert run.output_dir != done
    assert said in caplog.text and f"run.resume_ckpt_path={done}" in caplog.text


@pytest.mark.parametrize("change", LAWFUL, ids=str)
def test_the_same_experiment_goes_on(tmp_path, done, caplog, change):
    run = build_runner(tmp_path, resume_ckpt_path="auto", **{"max_epoch": 2, **NO_EVALUATION, **change})
    assert run.output_dir == done and "differ" not in caplog.text
    run.train()
    assert run.position.epoch > 1 and run.parts.length.is_finished(run.position)


def test_the_newest_run_of_this_configuration_is_found_behind_others(tmp_path, done, caplog):
    for seed in (1, 2):
        other = build_runner(tmp_path, max_epoch=1, seed=seed, **NO_EVALUATION)
        other.train()
    run = build_runner(tmp_path, max_epoch=2, resume_ckpt_path="auto", **NO_EVALUATION)
    assert run.output_dir == done and not caplog.records
    again = build_runner(tmp_path, max_epoch=2, seed=2, resume_ckpt_path="auto", **NO_EVALUATION)
    assert again.output_dir == other.output_dir


@pytest.mark.parametrize("given", ["folder", "file"])
def test_a_run_that_is_named_goes_on_and_what_differs_is_told(tmp_path, done, caplog, given):
    path = done if given == "folder" else done / "checkpoint_latest.pth"
    run = build_runner(tmp_path, max_epoch=2, seed=3, resume_ckpt_path=str(path), **NO_EVALUATION)
    assert run.output_dir == done
    assert "is of a run that was otherwise:\n  run.seed was 42 and is 3" in caplog.text


def test_checkpoints_that_say_nothing_are_taken(tmp_path):
    """Those of LAVIS's own runners, say."""
    (tmp_path / "run").mkdir()
    write_checkpoint(tmp_path / "run" / "checkpoint_3.pth", {"model": {}, "optimizer": {}, "epoch": 3, "config": {}})
    assert build_runner(tmp_path, resume_ckpt_path="auto").output_dir == tmp_path / "run"


BEFORE = {
    "run": {"seed": 1, "train_splits": ["train"]},
    "model": {"arch": "git_llm", "language_model": "a", "lora": {"rank": 4}, "self_test": True},
    "datasets": {
        "m3it": {
            "vis_processor": {"train": {"image_size": 8}, "eval": {"image_size": 8}},
            "build_info": {"annotations": {"train": {"storage": "x/a.jsonl"}, "val": {"storage": "x/v.jsonl"}}},
        }
    },
}


def changed(key: str, value) -> dict:
    """Copy with another value at a dotted key; None takes it out."""
    first, _, rest = key.partition(".")

    def put(node: dict, first: str, rest: str) -> dict:
        if rest:
            return {**node, first: put(node.get(first, {}), *rest.partition(".")[::2])}
        return {name: item for name, item in {**node, first: value}.items() if item is not None}

    return put(BEFORE, first, rest)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("model.language_model", "b", "model.language_model was 'a' and is 'b'"),
        ("model.lora", None, "model.lora.rank was 4 and is None"),
        ("model.lora.rank", 8, "model.lora.rank was 4 and is 8"),
        ("model.dtype", "bfloat16", "model.dtype was None and is 'bfloat16'"),
        ("datasets.m3it.vis_processor.train.image_size", 16, "image_size was 8 and is 16"),
        ("datasets.m3it.build_info.annotations.train.storage", "x/b.jsonl", "storage was 'a.jsonl' and is 'b.jsonl'"),
        ("datasets.coco.build_info.limit", 5, "datasets.coco.build_info.limit was None and is 5"),
    ],
)
def test_what_differs_of_model_and_data(key, value, said):
    (found,) = differences({"config": BEFORE}, changed(key, value), {})
    assert said in found


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.self_test", False),
        ("model.lora.rank", "4"),
        ("model.lora.bias", False),
        ("model.gradient_checkpointing", True),
        ("datasets.m3it.vis_processor.eval.image_size", 16),
        ("datasets.m3it.build_info.annotations.val", None),
        ("datasets.m3it.build_info.annotations.test_more.storage", "t.jsonl"),
        ("datasets.m3it.build_info.annotations.train.storage", "/elsewhere/a.jsonl"),
        ("datasets.m3it.eval_texts_per_image", 3),
        ("run.trackers", ["wandb"]),
    ],
)
def test_what_may_change_of_model_and_data(key, value):
    assert differences({"config": BEFORE}, changed(key, value), {}) == []


# ---------------------------------------------------------------------------------------------- data


def test_rows_are_told_by_what_is_in_them_and_not_by_where_they_are(tmp_path, caplog):
    (tmp_path / "a").mkdir()
    config = write_small_run(tmp_path / "a", max_epoch=1, valid_splits=[], test_splits=[])
    first = launch.train(config)
    where = "datasets.m3it.build_info.annotations.train.storage"
    again = ["run.resume_ckpt_path=auto", "run.max_epoch=2"]

    shutil.copyfile(tmp_path / "a" / "train.jsonl", tmp_path / "moved.jsonl")
    moved = launch.train(config, [f"{where}={tmp_path / 'moved.jsonl'}", *again])
    assert moved.output_dir == first.output_dir

    text = (tmp_path / "moved.jsonl").read_text()
    assert '"outputs": "red"' in text
    others = {
        "an answer": text.replace('"outputs": "red"', '"outputs": "tea"'),
        "a row less": "".join(text.splitlines(keepends=True)[:-2]),
        "the order": "".join(reversed(text.splitlines(keepends=True))),
    }
    write_m3it_jsonl(tmp_path / "images.jsonl", rows=24, texts_per_image=2, seed=9)
    others["images"] = (tmp_path / "images.jsonl").read_text()
    for what, rows in others.items():
        (tmp_path / "other.jsonl").write_text(rows)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            other = launch.train(config, [f"{where}={tmp_path / 'other.jsonl'}", *again, f"run.seed={1}"])
        assert other.output_dir != first.output_dir, what
        assert "the data m3it.train was 24 texts" in caplog.text, what
        shutil.rmtree(other.output_dir)


def test_shards_are_told_by_the_hashes_of_their_manifest(tmp_path):
    from lavis.datasets.builders import load_dataset
    from omegaconf import OmegaConf

    def fingerprint(name: str, rows: int, seed: int) -> str:
        groups = make_groups(tmp_path / f"{name}.jsonl", "a", "train", rows=rows, seed=seed)
        write_shards(tmp_path / name, groups)
        path = tmp_path / f"{name}.yaml"
        processors = "vis_processor: {train: {image_size: 8}, eval: {image_size: 8}}"
        path.write_text(f"datasets: {{m3it_wds: {{{processors}, build_info: {{shards: {tmp_path / name}}}}}}}")
        assert OmegaConf.load(path)
        return load_dataset("m3it_wds", cfg_path=str(path))["train"].fingerprint()

    one = fingerprint("one", 6, 0)
    assert fingerprint("two", 6, 0) == one
    assert len({one, fingerprint("three", 6, 1), fingerprint("four", 7, 0)}) == 3


# ---------------------------------------------------------------------------------------------- data without an end


class Endless(TinyData):
    endless = True


@pytest.mark.parametrize("key", ["valid_splits", "test_splits"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_an_endless_split_is_refused_before_it_is_evaluated(tmp_path, key, split):
    data = {"train": TinyData(8), "val": TinyData(8), split: Endless(8)}
    run = build_runner(tmp_path, data=data, **{**NO_EVALUATION, key: [split]})
    with pytest.raises(ConfigError, match=rf"run\.{key} names '{split}', whose data is a stream without an end"):
        run.train()


@pytest.mark.parametrize("options", [["run.test_splits=[train]"], ["run.valid_splits=[val,train]"]])
@pytest.mark.parametrize("way", [launch.evaluate, launch.train])
def test_a_training_stream_of_shards_is_refused_by_the_check(tmp_path, options, way):
    groups = make_groups(tmp_path / "a.jsonl", "a", "train", rows=4)
    write_shards(tmp_path / "shards", groups)
    image = "{train: {image_size: 8}, eval: {image_size: 8}}"
    path = tmp_path / "config.yaml"
    path.write_text(
        f"""model: {{arch: git_llm, model_type: tiny_opt}}
datasets: {{m3it_wds: {{vis_processor: {image}, build_info: {{shards: {tmp_path / "shards"}}}}}}}
run: {{runner: git_llm, task: m3it, device: cpu, init_lr: 0.1, max_iters: 1, output_dir: {tmp_path / "out"}}}
"""
    )
    with pytest.raises(ConfigError, match=r"run\.(valid|test)_splits names 'train', whose data is a stream"):
        way(path, options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "gone", ["checkpoints/step_00000002.pth", "checkpoints/step_00000003.pth", "checkpoint_best.pth"]
)
def test_a_file_that_is_deleted_while_it_is_looked_at(tmp_path, monkeypatch, gone):
    """As by the process that trains the run, which is refused later and by name."""
    run = tmp_path / "20260101000000"
    run.mkdir()
    for steps in (1, 2, 3):
        CheckpointFolder(run, keep_last=3).write(content(steps), [1])

    def described(file):
        found = read_checkpoint(file, mmap=True)
        if file == run / gone:
            file.unlink()
        return found

    monkeypatch.setattr("gitllm_plugin.runners.checkpoints._described", described)
    assert taken(tmp_path) == 3

"""Task `git_llm_dpo`: runs of it, what they write, and what is refused."""

import json
import math
import subprocess
import sys

import pytest
import torch
from lavis.common.registry import registry

from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.host import launch
from gitllm_plugin.tasks.dpo import PreferenceTask
from tests.preference_run import write_preference_run
from tests.runners.test_no_stops_in_training import CPU, make_loop, pinned, run
from tests.simulated_device import DEVICE, NAME, on_device, simulated_device
from tests.small_run import ENVIRONMENT
from tests.split_batches import make_model

LOGGED = {
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
}


def lines(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def train(path, *options):
    runner = launch.train(str(path), list(options))
    return runner.output_dir, lines(runner.output_dir)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_learns_what_is_preferred_and_says_so(tmp_path, precision):
    folder, steps = train(write_preference_run(tmp_path, precision=precision, max_epoch=4))
    assert len(steps) == 4 * 3 and all(step.keys() >= LOGGED for step in steps)
    first, last = steps[0], steps[-3:]
    # Policy and reference are one model, and both answers equally preferred.
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6 if precision == "fp32" else 1e-2)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5 if precision == "fp32" else 0.05)
    assert sum(step["loss"] for step in last) / 3 < first["loss"]
    assert sum(step["rewards/accuracies"] for step in last) / 3 > 0.6
    evaluations = lines(folder, "evaluations.jsonl")
    assert len(evaluations) == 4 and all(line.keys() >= LOGGED | {"loss", "agg_metrics"} for line in evaluations)
    assert evaluations[-1]["agg_metrics"] == -evaluations[-1]["loss"]
    assert evaluations[-1]["rewards/margins"] == pytest.approx(
        evaluations[-1]["rewards/chosen"] - evaluations[-1]["rewards/rejected"], abs=1e-4
    )


def same(steps, others, tolerance):
    assert len(steps) == len(others)
    for step, other in zip(steps, others, strict=True):
        for name in {"loss", "grad_norm", *LOGGED}:
            assert step[name] == pytest.approx(other[name], rel=tolerance, abs=tolerance), (step["step"], name)
        assert step["tokens"] == other["tokens"]


def test_a_run_that_is_resumed_has_the_reference_that_it_began_with(tmp_path):
    """Step for step the numbers of a run that was not stopped."""
    path = write_preference_run(tmp_path, max_epoch=4, valid_splits=[], lr_sched="constant")
    _, whole = train(path)
    folder, _ = train(path, f"run.output_dir={tmp_path}/parts", "run.max_epoch=2")
    again, steps = train(path, f"run.output_dir={tmp_path}/parts", f"run.resume_ckpt_path={folder}")
    assert again == folder
    same(steps, whole, 0)
    assert steps[6]["rewards/margins"] != 0, "the reference is the model as it was resumed"


def test_a_run_is_not_resumed_with_another_reference(tmp_path):
    path = write_preference_run(tmp_path, max_epoch=1, valid_splits=[])
    folder, _ = train(path)
    (folder / "reference.json").write_text('{"weights": "12345678"}')
    with pytest.raises(ConfigError, match=r"reference.json: the run began with other weights \(12345678\)"):
        train(path, f"run.resume_ckpt_path={folder}", "run.max_epoch=2")


@pytest.mark.parametrize("way", ["accumulated", "two ranks"])
def test_pairs_weigh_the_same_in_whatever_batch_and_rank_they_are(way, tmp_path):
    path = write_preference_run(tmp_path, max_epoch=2)
    folder, whole = train(path)
    options = ["run.batch_size_train=2", f"run.output_dir={tmp_path}/split"]
    if way == "accumulated":
        other, steps = train(path, *options, "run.accum_grad_iters=2")
    else:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "gitllm_plugin"]
        command = [sys.executable, *launcher, "train", "--cfg-path", str(path), "--options", *options]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
        other = (tmp_path / "split" / "latest").resolve()
        steps = lines(other)
    same(steps, whole, 2e-4)
    for evaluation, of_split in zip(lines(folder, "evaluations.jsonl"), lines(other, "evaluations.jsonl"), strict=True):
        for name in ("loss", "rewards/accuracies", "rewards/margins"):
            assert of_split[name] == pytest.approx(evaluation[name], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("model_type", ["tiny_opt", "tiny_mpt"])
def test_other_families_and_all_weights_train(model_type, tmp_path):
    model = {"model_type": model_type, "lora": None, "trainable": "proj+llm"}
    _, steps = train(write_preference_run(tmp_path, model, max_epoch=1, valid_splits=[]))
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_it_goes_on_from_an_exported_model_and_from_a_checkpoint(tmp_path):
    from gitllm_plugin.host.export import export_run

    first, _ = train(write_preference_run(tmp_path, max_epoch=1))
    export_run(str(first), str(tmp_path / "model"))
    ways = {
        "folder": ({"folder": str(tmp_path / "model"), "trainable": "proj+lora"}, []),
        "checkpoint": ({}, ["model.load_finetuned=true", f"model.finetuned={first}/checkpoint_latest.pth"]),
    }
    for name, (model, options) in ways.items():
        path = write_preference_run(tmp_path / name, model, max_epoch=1, allow_untrained=False)
        _, steps = train(path, *options)
        assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def without_rejected(folder):
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    for row in rows[3:]:
        del row["rejected"]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("changes", "options", "spoil", "error", "message"),
    [
        (
            {"allow_untrained": False},
            [],
            None,
            ConfigError,
            r"are random: lora, proj\. Name one by model.folder",
        ),
        ({}, ["run.sharding=fsdp"], None, ConfigError, "run.sharding is 'fsdp'"),
        ({}, ["run.beta=0"], None, ConfigError, "run.beta is 0"),
        ({}, ["run.label_smoothing=0.5"], None, ConfigError, "run.label_smoothing is 0.5"),
        ({}, ["run.betta=0.2"], None, ConfigError, "betta"),
        ({}, [], without_rejected, DataError, "has no rejected answer, and . of . texts in its batch have none"),
    ],
)
def test_what_cannot_be_is_said(changes, options, spoil, error, message, tmp_path):
    path = write_preference_run(tmp_path, max_epoch=1, **changes)
    if spoil:
        spoil(tmp_path)
    with pytest.raises(error, match=message):
        train(path, *options)


def test_a_model_that_reads_no_pairs_is_refused():
    with pytest.raises(ConfigError, match="which compares two answers to one prompt: object does not"):
        PreferenceTask().use_model(object())


def test_answers_are_generated_and_scored_too(tmp_path):
    path = write_preference_run(tmp_path, max_epoch=1, metrics=["exact_match"])
    folder, _ = train(path, "run.max_len=3")
    (found,) = lines(folder, "evaluations.jsonl")
    assert found.keys() >= LOGGED | {"exact_match", "loss"} and found["agg_metrics"] == found["exact_match"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_steps_wait_for_the_device_where_their_numbers_are_read_alone(precision, tmp_path, monkeypatch):
    """The reference is asked on the device too; the numbers are those of the CPU."""
    monkeypatch.setitem(registry.mapping["paths"], "output_dir", str(tmp_path))

    def records(device, name):
        model = make_model("tiny_llama", tmp_path)
        task = PreferenceTask()
        model.model.untrained.clear()
        task.use_model(model)
        if device is not CPU:
            on_device(model)
        context = lambda: torch.autocast(name, dtype=torch.bfloat16, enabled=precision == "bf16")  # noqa: E731
        loop = make_loop(model, device, read_every=2, autocast=context)
        loop.task = task
        batches = [{**each, "text_rejected": [f"{text} never" for text in each["text_output"]]} for each in pairs]
        return list(run(loop, map(pinned, batches) if device is not CPU else batches))

    pairs = [
        {"image": torch.randn(2, 3, 32, 32), "text_input": ["is it?", "who?", "why?"], "text_output": ["no", "I", "it"]}
        | {"image_index": torch.tensor([0, 1, 1])}
        for _ in range(4)
    ]
    expected = records(CPU, "cpu")
    with simulated_device() as stops:
        found = records(DEVICE, NAME)
    assert [(stop.what, stop.file.rpartition("/")[2]) for stop in stops] == [("copy to the host", "unread.py")]
    for record, on_cpu in zip(found, expected, strict=True):
        exact = precision == "fp32"
        assert record.loss == pytest.approx(on_cpu.loss, rel=1e-4 if exact else 0.05)
        assert record.logged["rewards/margins"] == pytest.approx(
            on_cpu.logged["rewards/margins"], abs=1e-4 if exact else 0.1
        )


def test_a_dry_run_foretells_it(tmp_path, capsys):
    from gitllm_plugin.cli.main import main

    path = write_preference_run(tmp_path)
    assert main(["train", "--cfg-path", str(path), "--dry-run"]) == 0
    assert "== memory" in capsys.readouterr().out

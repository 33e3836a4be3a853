"""Steps that cannot be used, gradients in fp16, and layers that are compiled."""

import json

import pytest
import torch
from tiny_run import TinyModel, build_runner

from gitllm_plugin.common.weights import read_checkpoint
from gitllm_plugin.curves.read import read_run
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.runners import precision
from gitllm_plugin.runners.loop import NonFiniteLossError
from gitllm_plugin.runners.state import trainable_state

SETTINGS = {"valid_splits": [], "test_splits": [], "max_epoch": 2}


def steps(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def spoil(runner, batches, value=float("nan")) -> None:
    """Multiply the loss of some batches of the run, counted from 0."""
    original, count = runner.task.train_outputs, iter(range(10_000))

    def train_outputs(model, samples):
        outputs = original(model, samples)
        if next(count) in batches:
            outputs["loss"] = outputs["loss"] * value
        return outputs

    runner.task.train_outputs = train_outputs


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_without_a_finite_loss_is_reported_with_its_examples_and_skipped(tmp_path, caplog, value):
    run = build_runner(tmp_path / "run", **SETTINGS)
    spoil(run, {2, 3}, value)
    run.train()
    recorded = steps(run.output_dir)
    assert len(recorded) == 8
    assert [record["step"] for record in recorded if record["loss"] is None] == [2, 3]
    assert len(recorded[2]["skipped"]) == 4 and "skipped" not in recorded[4]
    assert f"The loss is {value} at epoch 1, iteration 3. The step is skipped" in caplog.text
    assert f"Examples: {', '.join(recorded[2]['skipped'])}." in caplog.text
    assert len(read_run(run.output_dir).steps) == 6  # curves have no holes
    for value in trainable_state(run.model).values():
        assert value.isfinite().all()


def test_the_examples_are_those_of_the_batch_that_was_bad(tmp_path):
    run = build_runner(tmp_path, accum_grad_iters=2, **SETTINGS)
    spoil(run, {3})
    run.train()
    (skipped,) = [record for record in steps(run.output_dir) if record["loss"] is None]
    assert skipped["samples"] == 8 and len(skipped["skipped"]) == 4


def test_too_many_in_a_row_stop_the_run_which_can_go_on(tmp_path, caplog):
    run = build_runner(tmp_path, max_skipped_steps=2, **SETTINGS)
    spoil(run, {1, 3, 4, 5, 6})
    with pytest.raises(NonFiniteLossError, match="3 steps in a row, up to iteration 6, .*max_skipped_steps allows 2"):
        run.train()
    assert "Stopped. " in caplog.text and "holds the run after 6 iterations (2 of epoch 2)" in caplog.text
    content = read_checkpoint(run.output_dir / "checkpoint_latest.pth")
    assert all(value.isfinite().all() for value in content["model"].values())
    build_runner(tmp_path, resume_ckpt_path="auto", **SETTINGS).train()
    assert [record["step"] for record in steps(run.output_dir)] == list(range(8))


def test_a_gradient_that_is_not_finite_is_skipped_too(tmp_path, caplog):
    run = build_runner(tmp_path, **SETTINGS)
    run.model.text.register_hook(lambda gradient: gradient / 0 if run.position.steps == 1 else gradient)
    run.train()
    recorded = steps(run.output_dir)
    assert [record["step"] for record in recorded if record["grad_norm"] is None] == [1]
    assert recorded[1]["loss"] is not None and len(recorded[1]["skipped"]) == 4
    assert "The gradient is nan at epoch 1, iteration 2" in caplog.text or "The gradient is inf" in caplog.text


@pytest.fixture
def fp16_on_cpu(monkeypatch):
    """What is refused on a CPU, since torch has not all layers in it there; the model of these tests needs none."""
    monkeypatch.setattr(
        precision, "resolve_precision", lambda name, device: {"fp16": torch.float16, "fp32": torch.float32}[name]
    )


def test_fp16_on_a_cpu_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="precision=fp16 needs a GPU, and this run computes on a CPU"):
        build_runner(tmp_path, precision="fp16", **SETTINGS).train()


def test_fp16_trains_like_fp32_and_its_scale_is_saved(tmp_path, fp16_on_cpu):
    tiny = {"dropout": 0.0}
    exact = build_runner(tmp_path / "fp32", tiny=tiny, **SETTINGS)
    exact.train()
    run = build_runner(tmp_path / "fp16", tiny=tiny, precision="fp16", save_every_steps=4, **SETTINGS)
    assert run.scaler.is_enabled() and not exact.scaler.is_enabled()
    run.train()
    expected = [record["loss"] for record in steps(exact.output_dir)]
    assert [record["loss"] for record in steps(run.output_dir)] == pytest.approx(expected, abs=2e-2)
    assert read_checkpoint(run.output_dir / "checkpoint_latest.pth")["scaler"]["scale"] == run.scaler.get_scale()
    assert read_checkpoint(exact.output_dir / "checkpoint_latest.pth")["scaler"] is None

    file = run.output_dir / "checkpoints" / "step_00000004.pth"
    resumed = build_runner(tmp_path / "fp16", tiny=tiny, precision="fp16", resume_ckpt_path=str(file), **SETTINGS)
    resumed.train()
    assert resumed.scaler.state_dict() == run.scaler.state_dict()


def test_a_scale_that_is_too_large_is_halved_and_no_fault(tmp_path, caplog, fp16_on_cpu):
    run = build_runner(tmp_path, precision="fp16", max_skipped_steps=0, tiny={"size": 48}, **SETTINGS)
    run.scaler  # noqa: B018 - it is built now
    run.parts.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, enabled=True)
    run.train()
    recorded = steps(run.output_dir)
    halved = [record for record in recorded if record["grad_norm"] is None]
    assert halved and len(halved) < 10 and run.scaler.get_scale() == 2.0 ** (20 - len(halved))
    assert all(record["skipped"] == [] for record in halved)
    assert "skipped" not in caplog.text


# By torch's own patch: pytest's takes the setting out when it ends, and what is compiled later in the process fails.
@torch._dynamo.config.patch(suppress_errors=False)
def test_compiled_training_gives_the_same_losses(tmp_path, monkeypatch):
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    model = TinyModel(0.0)
    monkeypatch.setattr(model, "compile", lambda: nn_compile(model, backend=backend))
    nn_compile = torch.nn.Module.compile
    run = build_runner(tmp_path / "a", model=model, compile=True, **SETTINGS)
    run.train()
    plain = build_runner(tmp_path / "b", tiny={"dropout": 0.0}, **SETTINGS)
    plain.train()
    assert compiled
    expected = [record["loss"] for record in steps(plain.output_dir)]
    assert [record["loss"] for record in steps(run.output_dir)] == pytest.approx(expected, abs=1e-6)
    assert set(trainable_state(run.model)) == set(trainable_state(plain.model))


def test_fp16_and_sharding_exclude_each_other(tmp_path):
    with pytest.raises(ConfigError, match="run.precision=fp16 needs a gradient scaler, which knows no run.sharding"):
        build_runner(tmp_path, precision="fp16", sharding="fsdp").train()

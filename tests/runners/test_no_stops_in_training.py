"""The training loop waits for the device where numbers are logged, and nowhere else; on a simulated one."""

import contextlib
import copy
from types import SimpleNamespace

import pytest
import torch

from gitllm_plugin.common.loading import move_batch
from gitllm_plugin.runners.length import Position
from gitllm_plugin.runners.loop import NonFiniteLossError, Requests, TrainingLoop
from gitllm_plugin.runners.optimizer import build_optimizer, step_unless
from gitllm_plugin.tasks.m3it import M3ITTask
from gitllm_plugin.tasks.settings import M3ITTaskSettings
from tests.simulated_device import DEVICE, NAME, held, on_device, simulated_device
from tests.split_batches import batch_of, make_model, make_pictures

CPU = torch.device("cpu")


def batches_of(count, plain=False):
    return [batch_of(make_pictures(seed, "of_annotators", plain=plain, count=2)) for seed in range(count)]


def pinned(batch):
    return {key: value.pin_memory() if isinstance(value, torch.Tensor) else value for key, value in batch.items()}


def make_loop(model, device, **settings):
    """A loop over some batches, and what it is to be run with."""
    optimizer = build_optimizer(model, 1e-2, 0.1, 0.95)
    if device is not CPU:
        assert optimizer.param_groups[0]["fused"]
    return TrainingLoop(
        task=M3ITTask(),
        model=model,
        optimizer=optimizer,
        schedule=SimpleNamespace(set_for=lambda *place: None),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        device=device,
        seed=1,
        **{"autocast": contextlib.nullcontext, "max_grad_norm": 1.0, "accum_grad_iters": 2, **settings},
    )


def run(loop, batches, requests=None):
    batches = list(batches)
    data = SimpleNamespace(batches=lambda position: iter(batches), note=lambda batch: None)
    return loop.run(data, Position(), len(batches), requests)


def trained(model):
    return {name: held(p.detach()).clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("family", "precision"),
    [("tiny_opt", "fp32"), ("tiny_llama", "fp32"), ("tiny_mpt", "fp32"), ("git", "fp32"), ("tiny_llama", "bf16")],
)
def test_steps_wait_where_their_numbers_are_read_alone(family, precision, tmp_path):
    """Steps of two batches each: accumulated, clipped and taken; their numbers are those of the CPU."""

    def autocast(kind):
        return lambda: torch.autocast(kind, dtype=torch.bfloat16, enabled=precision == "bf16")

    model, batches = make_model(family, tmp_path), batches_of(4, plain=family == "git")
    there = on_device(copy.deepcopy(model))
    expected = list(run(make_loop(model, CPU, autocast=autocast("cpu")), batches))
    with simulated_device() as stops:
        loop = make_loop(there, DEVICE, read_every=2, autocast=autocast(NAME))
        records = list(run(loop, map(pinned, batches)))
    assert [(stop.what, stop.file.rpartition("/")[2]) for stop in stops] == [("copy to the host", "unread.py")]
    assert [record.step for record in records] == [0, 1]
    exact = precision == "fp32"
    for record, on_cpu in zip(records, expected, strict=True):
        assert record.loss == pytest.approx(on_cpu.loss, rel=1e-4 if exact else 0.05)
        assert record.grad_norm == pytest.approx(on_cpu.grad_norm, rel=1e-3 if exact else 0.2)
        assert (record.tokens, record.samples, record.iter) == (on_cpu.tokens, on_cpu.samples, on_cpu.iter)
    for name, value in trained(there).items():
        if exact:
            torch.testing.assert_close(value, trained(model)[name], atol=1e-3, rtol=0, msg=name)


@pytest.mark.parametrize("due", [(), (1,), (2, 3)])
def test_numbers_are_read_where_they_are_needed_and_no_step_is_left_out(due, tmp_path):
    model = on_device(make_model("tiny_llama", tmp_path))
    with simulated_device() as stops:
        loop = make_loop(model, DEVICE, read_every=100, accum_grad_iters=1)
        known = []
        for record in run(loop, map(pinned, batches_of(4)), Requests(due=lambda steps: steps in due)):
            known.append((record.step, len(stops)))
    # The last step of an epoch is always read.
    reads = [*due, *([] if 4 in due else [4])]
    assert known == [(step, 1 + sum(step + 1 > read for read in reads)) for step in range(4)]


def spoil(model, number, what):
    """Make the loss or the gradient of a batch, counted from 0, useless."""
    original, count = model.forward, iter(range(100))

    def forward(samples):
        outputs = original(samples)
        if next(count) == number:
            loss = outputs["loss"] * (float("inf") if what == "loss" else 1.0)
            if what == "gradient":
                loss.register_hook(lambda gradient: gradient * float("nan"))
            outputs["loss"] = loss
        return outputs

    model.forward = forward


@pytest.mark.parametrize(("number", "what"), [(0, "loss"), (1, "gradient"), (2, "loss")])
def test_a_step_that_is_of_no_use_changes_nothing_and_is_not_waited_for(number, what, tmp_path):
    """As if it had not been: the others train as without it, the optimizer's moments and count of steps included."""
    batches = batches_of(3)
    whole, without = (on_device(make_model("tiny_llama", tmp_path)) for _ in range(2))
    spoil(whole, number, what)
    with simulated_device() as stops:
        loop = make_loop(whole, DEVICE, read_every=3, accum_grad_iters=1, max_skipped_steps=1)
        records = list(run(loop, map(pinned, batches)))
        assert len(stops) == 1
        others = [batch for place, batch in enumerate(batches) if place != number]
        list(run(make_loop(without, DEVICE, accum_grad_iters=1), map(pinned, others)))
    assert [record.skipped is not None for record in records] == [place == number for place in range(3)]
    assert (records[number].loss is None) == (what == "loss") and (records[number].grad_norm is None)
    for name, value in trained(without).items():
        assert torch.equal(trained(whole)[name], value), name


def test_too_many_useless_steps_end_the_run_when_they_are_read(tmp_path):
    """What was done before that is in the weights, and among the steps too."""
    model, seen = on_device(make_model("tiny_llama", tmp_path)), []
    for number in range(2):
        spoil(model, number, "loss")
    with simulated_device():
        loop = make_loop(model, DEVICE, read_every=4, accum_grad_iters=1, max_skipped_steps=1)
        with pytest.raises(NonFiniteLossError, match="2 steps in a row, up to iteration 2"):
            for record in run(loop, map(pinned, batches_of(4))):
                seen.append(record.loss is None)
    assert seen == [True, True, False, False]


@pytest.mark.parametrize("useless", [True, False])
@pytest.mark.parametrize("fused", [True, None])
def test_optimizers_skip_alike_whether_they_look_by_themselves_or_not(useless, fused):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=fused)
    weight.grad = torch.ones(3)
    for flag in (False, useless):
        step_unless(optimizer, torch.tensor(flag))
    reference = torch.nn.Parameter(torch.ones(3))
    expected = torch.optim.AdamW([reference], lr=0.1)
    reference.grad = torch.ones(3)
    for _ in range(1 if useless else 2):
        expected.step()
    torch.testing.assert_close(weight, reference)
    assert float(optimizer.state[weight]["step"]) == float(expected.state[reference]["step"])
    assert not hasattr(optimizer, "found_inf")


@pytest.mark.parametrize("family", ["tiny_opt", "tiny_llama", "tiny_mpt"])
def test_an_evaluation_of_the_loss_waits_once(family, tmp_path):
    model = on_device(make_model(family, tmp_path))
    names = ("instance_id", "config", "question", "references")
    batches = [{**batch, **{name: ["x"] * len(batch["text_input"]) for name in names}} for batch in batches_of(3)]
    with simulated_device() as stops:
        result = M3ITTask(M3ITTaskSettings(metrics=())).evaluation(model, list(map(pinned, batches)))
    assert result.loss_weight > 0 and isinstance(result.loss_sum, float)
    # LoRA is merged before the first batch, which is looked at; of the batches nothing is, but their sum.
    of_batches = [stop for stop in stops if "lora" not in stop.file]
    assert [stop.file.rpartition("/")[2] for stop in of_batches] == ["m3it.py"]


def test_what_says_who_stands_where_stays_on_the_host(tmp_path):
    model, (batch,) = make_model("tiny_llama", tmp_path), batches_of(1)
    with simulated_device() as stops:
        moved = move_batch(pinned(batch), model, DEVICE)
    assert not stops and moved["image"].device.type == NAME
    for name in ("image_index", "num_images", "n_answers", "weight"):
        assert moved[name] == batch[name].tolist()

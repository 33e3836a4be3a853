"""A training described before it is started."""

import torch
from PIL import Image
from tiny_run import build_runner
from torch import nn

from gitllm_plugin.cli.main import main
from gitllm_plugin.runners.dry_run import describe_time, dry_run, estimate_memory, measure_step
from gitllm_plugin.runners.length import RunLength
from tests.small_run import write_small_run


def test_everything_is_said_and_nothing_trained(tmp_path, capsys):
    config = write_small_run(tmp_path, {"model_type": "tiny_llama", "lora": {"rank": 4}})
    assert main(["train", "--cfg-path", str(config), "--dry-run", "--options", "run.max_epoch=3"]) == 0
    out = capsys.readouterr().out
    for part in (
        "max_epoch: 3",
        "save_every_minutes: 30.0",  # a default
        "language_model.model.layers.{0-1}.self_attn.q_proj.lora_A.default.weight",
        "parameters are trained",
        "8 texts, 4 images; what is learnt stands in [ ]",
        "##Question: what color is the square? ##Answer:[ ",
        "activations",
        "3 epochs of 3 batches, 9 batches in all, 9 optimizer steps",
    ):
        assert part in out, part
    (figure,) = tmp_path.rglob("first_batch.png")
    assert f"images: {figure}" in out
    assert Image.open(figure).size == (4 * 32, 32)
    assert not list(tmp_path.rglob("metrics.jsonl")) and not list(tmp_path.rglob("*.pth"))
    assert not (tmp_path / "output" / "latest").exists()


def test_another_runner_is_refused(tmp_path, capsys):
    needed = {"lr_sched": "linear_warmup_cosine_lr", "min_lr": 0, "weight_decay": 0, "num_workers": 0}
    config = write_small_run(tmp_path, runner="runner_base", **needed)
    assert main(["train", "--cfg-path", str(config), "--dry-run"]) == 2
    assert "--dry-run needs run.runner=git_llm, and it is 'runner_base'" in capsys.readouterr().err


def test_other_models_show_their_texts(tmp_path):
    described = dry_run(build_runner(tmp_path))
    assert "'prompt 6' ['" in described and "the batch has no images" in described


def test_activations_are_counted_and_weights_are_not():
    model = nn.Sequential(nn.Linear(100, 50, bias=False), nn.Tanh(), nn.Linear(50, 10, bias=False))
    batch = torch.randn(8, 100)
    activations, seconds = measure_step(model, lambda: model(batch).sum())
    assert activations == 4 * (8 * 100 + 8 * 50)  # the input of the first layer, and what tanh gave
    assert seconds > 0 and model[0].weight.grad is None
    model[0].requires_grad_(False)
    estimate = estimate_memory(model, activations)
    assert (estimate.frozen, estimate.trained, estimate.gradients, estimate.optimizer) == (20_000, 2_000, 2_000, 4_000)
    assert estimate.total == 28_000 + activations and "together" in str(estimate)


def test_time():
    text = describe_time(RunLength(iters_per_epoch=100, max_epoch=2, total_iters=200, accum_grad_iters=4), 90.0)
    assert "200 batches in all, 50 optimizer steps" in text and "all of them 5:00:00" in text

"""A training described before it is started."""

import torch
from PIL import Image
from tiny_run import build_runner
from torch import nn

from gitllm_plugin.cli.main import main
from gitllm_plugin.runners.dry_run import describe_time, dry_run, measure_seconds
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
        "FSDP2, checkpointing",
        "a batch takes",
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
    runner = build_runner(tmp_path)
    described = dry_run(runner, runner.parts.bare_model)
    assert "'prompt 6' ['" in described and "the batch has no images" in described
    assert "FSDP2 " in described and "checkpointing" not in described.partition("== memory")[2].partition("In it")[0]


def test_seconds_are_measured_and_no_gradient_is_left():
    model = nn.Linear(10, 5)
    assert measure_seconds(model, lambda: model(torch.randn(2, 10)).sum()) > 0 and model.weight.grad is None


def test_time():
    text = describe_time(RunLength(iters_per_epoch=100, max_epoch=2, total_iters=200, accum_grad_iters=4), 90.0)
    assert "200 batches in all, 50 optimizer steps" in text and "all of them 5:00:00" in text
    text = describe_time(
        RunLength(iters_per_epoch=1, max_epoch=1, total_iters=1, accum_grad_iters=1), "it is too large"
    )
    assert "1 batches in all" in text and text.endswith("How long a batch takes was not measured: it is too large.")

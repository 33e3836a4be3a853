"""A training described before it is started."""

import re
import subprocess
import sys

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from tiny_run import build_runner
from torch import nn

from gitllm_plugin.cli.main import main
from gitllm_plugin.runners.dry_run import describe_time, dry_run, measure_seconds
from gitllm_plugin.runners.length import RunLength
from tests.m3it_shards import make_groups, write_shards
from tests.small_run import ENVIRONMENT, write_small_run
from tests.tiny_folder import write_tiny_folder


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
    assert "'prompt 6' ['" in described and "images: not as pictures" in described
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


def test_of_two_processes_one_describes(tmp_path):
    config = write_small_run(tmp_path)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*torchrun, "-m", "gitllm_plugin", "train", "--cfg-path", str(config), "--dry-run"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("== memory") == 1
    assert "2 epochs of 1 batches" in done.stdout  # 12 pictures, 4 a batch, by two
    assert len(list(tmp_path.rglob("first_batch.png"))) == 1


def test_features_in_the_place_of_images(tmp_path, capsys):
    write_shards(tmp_path / "shards", make_groups(tmp_path / "rows.jsonl", "a", "train", rows=24, texts_per_image=2))
    size, data = {"image_size": 32}, {"shards": str(tmp_path / "shards")}
    small = OmegaConf.load(write_small_run(tmp_path, valid_splits=[], test_splits=[], max_iters=2, max_epoch=1))
    datasets = {"m3it_wds": {"build_info": data, "vis_processor": {"train": size, "eval": size}}}
    config = {"model": small.model, "datasets": datasets, "run": small.run}
    path = tmp_path / "features.yaml"
    OmegaConf.save(OmegaConf.create(config), path)
    assert main(["m3it", "features", "--cfg-path", str(path)]) == 0
    capsys.readouterr()
    options = ["--options", "datasets.m3it_wds.build_info.features=true"]
    assert main(["train", "--cfg-path", str(path), "--dry-run", *options]) == 0
    out = capsys.readouterr().out
    assert "4 images; what is learnt" in out and "images: not as pictures (features), so they are not drawn" in out
    assert "FSDP2, checkpointing" in out and "a batch takes" in out


@pytest.mark.parametrize("family", ["llama", "opt", "mpt"])
def test_an_exported_folder_is_described_as_a_model_by_names(tmp_path, capsys, family):
    folder = write_tiny_folder(tmp_path / "model", f"tiny:{family}")
    config = write_small_run(tmp_path, {"model_type": f"tiny_{family}", "folder": str(folder)}, max_epoch=1)
    assert main(["train", "--cfg-path", str(config), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"of [\d,]+ parameters are trained", out)
    assert "FSDP2, checkpointing" in out and "a batch takes" in out

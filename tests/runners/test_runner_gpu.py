"""The same configurations on a GPU: bf16, fp16 with its scaler, NCCL, and FSDP2 with one rank."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gitllm_plugin.common.weights import read_checkpoint
from gitllm_plugin.host import launch
from tests.small_run import write_small_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.timeout(600),
]
ROOT = Path(__file__).parents[2]
MODEL = {"model_type": "tiny_llama", "lora": {"rank": 4, "alpha": 8, "dropout": 0.0}}


@pytest.fixture
def config(tmp_path) -> Path:
    return write_small_run(tmp_path, MODEL, max_epoch=3)


def folder_of(config: Path, output: str) -> Path:
    return (config.parent / output / "latest").resolve()


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def train(config: Path, output: str, *options: str) -> list[float]:
    launch.train(config, [f"run.output_dir={config.parent / output}", *options])
    return losses(folder_of(config, output))


def torchrun(config: Path, output: str, *options: str) -> list[float]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1"]
    command += ["-m", "gitllm_plugin", "train", "--cfg-path", str(config)]
    command += ["--options", f"run.output_dir={config.parent / output}", "run.device=cuda", *options]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert "nccl" in done.stdout
    return losses(folder_of(config, output))


@pytest.fixture
def on_cpu(config) -> list[float]:
    return train(config, "cpu", "run.device=cpu", "run.precision=fp32")


def test_fp32_on_a_gpu_gives_the_losses_of_the_cpu(config, on_cpu):
    assert train(config, "gpu", "run.device=cuda", "run.precision=fp32") == pytest.approx(on_cpu, abs=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision(config, on_cpu, precision):
    found = train(config, precision, "run.device=cuda", f"run.precision={precision}")
    assert found == pytest.approx(on_cpu, abs=0.1)
    content = read_checkpoint(folder_of(config, precision) / "checkpoint_latest.pth")
    assert (content["scaler"] is not None) == (precision == "fp16")
    assert "cuda" in content["random"][0]


def test_auto_is_bf16_where_the_gpu_has_it(config):
    runner = launch.train(config, ["run.device=auto", "run.precision=auto", "run.max_epoch=1"])
    assert runner.device.type == "cuda"
    assert runner.dtype == (torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32)


def test_nccl(config, on_cpu):
    assert torchrun(config, "nccl", "run.precision=fp32") == pytest.approx(on_cpu, abs=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fsdp_with_one_rank(config, on_cpu, precision):
    found = torchrun(config, precision, "run.sharding=fsdp", f"run.precision={precision}")
    assert found == pytest.approx(on_cpu, abs=1e-3 if precision == "fp32" else 0.1)


def test_a_run_goes_on_with_another_device(config, on_cpu):
    train(config, "both", "run.device=cuda", "run.precision=fp32", "run.max_iters=4")
    options = ["run.device=cpu", "run.precision=fp32", "run.resume_ckpt_path=auto"]
    assert len(train(config, "both", *options)) == len(on_cpu)


def test_compiled_layers(config, on_cpu):
    found = train(config, "compiled", "run.device=cuda", "run.precision=fp32", "run.compile=true")
    assert found == pytest.approx(on_cpu, abs=1e-3)

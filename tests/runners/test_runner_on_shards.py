"""Runner `git_llm` on shards: epochs, the very next sample after a stop, workers that end with the run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from gitllm_plugin.host import launch
from tests.m3it_shards import make_groups, write_shards
from tests.small_run import ENVIRONMENT, TINY_LORA, write_small_run


@pytest.fixture
def config(tmp_path) -> Path:
    """A small run whose data are shards: 24 texts about 12 pictures, four of them a batch; val and test have 7."""
    path = write_small_run(tmp_path, TINY_LORA, lr_sched="constant")
    content = OmegaConf.load(path)
    groups = make_groups(tmp_path / "train.jsonl", "toy", "train", rows=24, texts_per_image=2)
    groups += make_groups(tmp_path / "val.jsonl", "toy", "val", rows=7, seed=1)
    groups += make_groups(tmp_path / "test.jsonl", "toy", "test", rows=7, seed=2)
    write_shards(tmp_path / "shards", groups)
    node = content.datasets.m3it
    content.datasets = {
        "m3it_wds": {
            "texts_per_image": 2,
            "vis_processor": node.vis_processor,
            "build_info": {"shards": str(tmp_path / "shards")},
        }
    }
    OmegaConf.save(content, path)
    return path


def losses(output: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (output / "latest" / "metrics.jsonl").read_text().splitlines()]


def test_a_run_that_was_stopped_within_an_epoch_goes_on_with_the_next_sample(config, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    runner = launch.train(config, [f"run.output_dir={whole}", "run.max_epoch=3"])
    assert runner.parts.length.iters_per_epoch == 3  # 12 pictures
    expected = losses(whole)
    assert len(expected) == 9
    launch.train(config, [f"run.output_dir={parts}", "run.max_epoch=3", "run.max_iters=4"])
    assert losses(parts) == expected[:4]
    launch.train(config, [f"run.output_dir={parts}", "run.max_epoch=3", "run.resume_ckpt_path=auto"])
    assert losses(parts) == expected
    assert json.loads((parts / "latest" / "test_metrics.json").read_text())["num_examples"] == 7


def test_a_run_with_worker_processes_ends(config):
    """Training has no end, so its workers still wait for work when the run is over."""
    options = ["run.num_workers=1", "run.max_epoch=1", "run.test_splits=[]"]
    command = [sys.executable, "-W", "ignore", "-m", "gitllm_plugin", "train", "--cfg-path", str(config)]
    finished = subprocess.run([*command, "--options", *options], env=ENVIRONMENT, capture_output=True, timeout=200)
    assert finished.returncode == 0, finished.stderr

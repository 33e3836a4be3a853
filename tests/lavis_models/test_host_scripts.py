"""Models of LAVIS's under the host's own train.py and evaluate.py, its tasks and its runner, on small data."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import gitllm_plugin
from tests.benchmark_files import write_benchmarks
from tests.lavis_models import recipes, run_tiny, trial

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "tests" / "host" / "scripts"
# Model, its type, data set, task, the shipped configuration that knows the data's places, split.
CASES = {
    "blip_vqa": ("vqav2", "coco_vqa", "vqa", "train/vqav2", "val"),
    "albef_vqa": ("vqav2", "coco_vqa", "vqa", "train/vqav2", "val"),
    "blip2_t5": ("pretrain_flant5xl", "coco_vqa", "vqa", "train/vqav2", "val"),
    "blip_caption": ("base_coco", "coco_caption", "captioning", "eval/coco_caption", "test"),
    "blip2_opt": ("pretrain_opt2.7b", "coco_caption", "captioning", "eval/coco_caption", "test"),
    "blip_nlvr": ("nlvr", "nlvr", "multimodal_classification", "eval/nlvr2", "val"),
    "albef_classification": ("ve", "snli_ve", "multimodal_classification", "eval/snli_ve", "test"),
}
TRAINED = ("blip_vqa", "albef_vqa")
RUN = {
    "runner": "runner_base",
    "lr_sched": "linear_warmup_cosine_lr",
    "init_lr": 1e-3,
    "min_lr": 0,
    "weight_decay": 0.05,
    "max_epoch": 2,
    "batch_size_train": 2,
    "batch_size_eval": 2,
    "num_workers": 0,
    "seed": 42,
    "amp": False,
    "resume_ckpt_path": None,
    "evaluate": False,
    "train_splits": ["train"],
    "valid_splits": [],
    "device": "cpu",
    "world_size": 1,
    "dist_url": "env://",
    "distributed": True,
    "num_beams": 2,
    "max_len": 8,
    "min_len": 1,
    "report_metric": False,
}


@pytest.fixture(autouse=True)
def paths(monkeypatch, tmp_path):
    """LAVIS has one run a process; where its data lies."""
    gitllm_plugin.register()
    from lavis.common.registry import registry

    monkeypatch.setitem(registry.mapping, "paths", dict(registry.mapping["paths"]))
    monkeypatch.setenv("LAVIS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("GITLLM_MODEL", "unused")
    write_benchmarks(tmp_path / "data")
    return registry.mapping["paths"]


def write_config(name, folder, output, **run):
    """Write a configuration of a tiny model with numbers of its own; gives its path."""
    kind, dataset, task, place, split = CASES[name]
    shipped = OmegaConf.load(ROOT / "projects" / "git_llm" / f"{place}.yaml")
    data = OmegaConf.to_container(shipped)["datasets"][dataset]
    model = {"arch": name, "model_type": kind, **recipes.RECIPES[name].config(folder)}
    size = {"name": "blip_image_eval", "image_size": model["image_size"]}
    words = {"name": "blip_question" if task == "vqa" else "blip_caption"}
    data |= {"vis_processor": {"train": size, "eval": size}, "text_processor": {"train": words, "eval": words}}
    built = recipes.build(name, folder)
    recipes.fill(built)
    torch.save({"model": built.state_dict()}, folder / "filled.pth")
    model["finetuned"] = str(folder / "filled.pth")
    ranked = {"inference_method": "generate" if name == "blip2_t5" else "rank"} if task == "vqa" else {}
    node = {**RUN, **ranked, "task": task, "output_dir": str(output), "test_splits": [split], **run}
    path = output / "config.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create({"model": model, "datasets": {dataset: data}, "run": node}), path)
    return path


def start(script, config, monkeypatch, paths):
    """Run a script in this process; gives the run's folder."""
    paths.pop("result_dir", None)
    paths.pop("output_dir", None)
    monkeypatch.setattr(sys, "argv", ["run_tiny", str(SCRIPTS / script), "--cfg-path", str(config)])
    with contextlib.redirect_stdout(io.StringIO()):
        run_tiny.main()
    return Path(paths["output_dir"])


@pytest.mark.parametrize(
    "name", [name if name == "blip_vqa" else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_the_hosts_scripts_train_and_evaluate_it(name, tmp_path, monkeypatch, paths):
    split = CASES[name][-1]
    with trial.workshop() as folder:
        config = write_config(name, folder, tmp_path / "out")
        output = start("evaluate.py", config, monkeypatch, paths)
        results = json.loads(next((output / "result").glob(f"{split}_*.json")).read_text())
        assert len(results) == {"vqa": 10, "captioning": 5, "multimodal_classification": 3}[CASES[name][2]]
        if name in TRAINED:
            output = start("train.py", config, monkeypatch, paths)
            lines = [line for line in (output / "log.txt").read_text().splitlines() if line.startswith('{"train_')]
            losses = [float(json.loads(line)["train_loss"]) for line in lines]
            assert losses[1] < losses[0]
            assert (output / "checkpoint_1.pth").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("script", ["evaluate.py", "train.py"])
def test_two_processes_score_as_one(script, tmp_path):
    with trial.workshop() as folder:
        scores = []
        for count in (1, 2):
            config = write_config("blip_vqa", folder, tmp_path / str(count), batch_size_train=4 // count)
            launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
            module = ["-m", "tests.lavis_models.run_tiny", str(SCRIPTS / script), "--cfg-path", str(config)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            command = [sys.executable, "-W", "ignore", *launcher, *module]
            finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            assert finished.returncode == 0, finished.stderr
            (written,) = (tmp_path / str(count)).rglob("evaluate.txt")
            scores.append(json.loads(written.read_text().splitlines()[-1]))
            (results,) = written.parent.rglob("val_vqa_result.json")
            assert len(json.loads(results.read_text())) == 10
        if script == "evaluate.py":
            assert scores[0] == scores[1]

"""What version 0.1.0 has written is opened, resumed and evaluated with the numbers that it gave itself."""

import base64
import io
import json
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from PIL import Image

from gitllm_plugin.cli.main import main
from gitllm_plugin.inference.pipeline import Pipeline

WRITTEN = Path(__file__).parent / "data" / "version_0_1_0"
MODEL = {
    "arch": "git_llm",
    "model_type": "tiny_llama",
    "dtype": "float32",
    "lora": {"rank": 4, "alpha": 8, "dropout": 0.0},
}
RUN = {
    "task": "m3it",
    "runner": "git_llm",
    "device": "cpu",
    "precision": "fp32",
    "seed": 1,
    "init_lr": 1e-2,
    "max_len": 4,
    "log_freq": 1,
}
IMAGE = {"image_size": 32}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in lines(run / "metrics.jsonl") if "loss" in record]


def write_config(folder: Path, dataset: str, node: dict, **run) -> Path:
    config = {"model": MODEL, "datasets": {dataset: {"texts_per_image": 2, **node}}, "run": {**RUN, **run}}
    path = folder / "config.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    return path


@pytest.fixture
def config(tmp_path) -> Path:
    """The configuration that the run had, and the run itself as its newest."""
    shutil.copytree(WRITTEN / "run", tmp_path / "output" / "20261128000000", symlinks=True)
    storage = {split: {"storage": str(WRITTEN / "rows" / f"{split}.jsonl")} for split in ("train", "val", "test")}
    node = {"vis_processor": {"train": IMAGE, "eval": IMAGE}, "build_info": {"annotations": storage}}
    run = {"max_epoch": 4, "batch_size_train": 4, "batch_size_eval": 2, "save_every_steps": 2}
    splits = {"valid_splits": ["val"], "test_splits": ["test"]}
    return write_config(tmp_path, "m3it", node, **run, **splits, output_dir=str(tmp_path / "output"))


def assert_results_are_those_of_then(run: Path) -> None:
    then = json.loads((WRITTEN / "whole.json").read_text())
    assert json.loads((run / "test_metrics.json").read_text()) == pytest.approx(then["metrics"], abs=1e-5)
    found = lines(run / "result" / "test_epochbest.jsonl")
    assert {row["instance_id"]: row["prediction"] for row in found} == then["predictions"]


@pytest.mark.parametrize("given", ["auto", "the folder", "a checkpoint"])
def test_a_run_that_was_killed_goes_on(config, given):
    folder = config.parent / "output" / "20261128000000"
    assert len(losses(folder)) < 12
    path = {"auto": "auto", "the folder": folder, "a checkpoint": folder / "checkpoint_latest.pth"}[given]
    assert main(["train", "--cfg-path", str(config), "--options", f"run.resume_ckpt_path={path}"]) == 0
    then = json.loads((WRITTEN / "whole.json").read_text())
    assert losses(folder) == pytest.approx(then["losses"], abs=1e-5)
    assert_results_are_those_of_then(folder)


def test_a_checkpoint_is_evaluated(config):
    """The best one is that of the first validation, whose results stand in the run's folder."""
    weights = ["model.load_finetuned=True", f"model.finetuned={WRITTEN / 'run' / 'checkpoint_best.pth'}"]
    options = [*weights, "run.test_splits=[val]", f"run.output_dir={config.parent / 'evaluation'}"]
    assert main(["evaluate", "--cfg-path", str(config), "--options", *options]) == 0
    evaluation = (config.parent / "evaluation" / "latest_evaluation").resolve()
    then = lines(WRITTEN / "run" / "evaluations.jsonl")[0]
    found = json.loads((evaluation / "val_metrics.json").read_text())
    assert found["loss"] == pytest.approx(then["loss"], abs=1e-5)
    predicted = [row["prediction"] for row in lines(evaluation / "result" / "val_epochbest.jsonl")]
    assert predicted == [row["prediction"] for row in lines(WRITTEN / "run" / "result" / "val_epoch0.jsonl")]


def test_an_exported_folder_says_the_same():
    pipeline = Pipeline.from_pretrained(WRITTEN / "exported", dtype="float32")
    then = json.loads((WRITTEN / "exported.json").read_text())
    for row, tokens, loss in zip(lines(WRITTEN / "rows" / "test.jsonl"), then["tokens"], then["losses"], strict=False):
        picture = Image.open(io.BytesIO(base64.b64decode(row["image_base64_str"]))).convert("RGB")
        text = pipeline.encode_answer(row["inputs"], row["outputs"])
        pixels = pipeline.pixels([picture])
        found = pipeline.model(text.input_ids, text.attention_mask, pixels, text.labels).loss
        assert found.item() == pytest.approx(loss, abs=1e-5)
        given = pipeline.model.generate(text.input_ids, None, pixels, min_new_tokens=4, max_new_tokens=4)
        assert given[0].tolist() == tokens


def test_shards_and_features_are_trained_on(tmp_path):
    build_info = {"shards": str(WRITTEN / "shards"), "features": True}
    processors = {"train": {"name": "git_llm_image_eval", **IMAGE}, "eval": IMAGE}
    node = {"vis_processor": processors, "build_info": build_info}
    path = write_config(tmp_path, "m3it_wds", node, max_epoch=2, batch_size_train=2, output_dir=str(tmp_path / "out"))
    assert main(["train", "--cfg-path", str(path)]) == 0
    then = json.loads((WRITTEN / "on_features.json").read_text())
    assert losses((tmp_path / "out" / "latest").resolve()) == pytest.approx(then, abs=1e-5)

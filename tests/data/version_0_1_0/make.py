"""Makes the files of this folder with version 0.1.0 of the package: what people have on their disks.

It is not run by the tests, which open the files with the present version (`tests/test_files_of_earlier_versions.py`).
From a checkout of that version, with its dependencies::

    OMP_NUM_THREADS=1 PYTHONPATH=. python .../tests/data/version_0_1_0/make.py

`rows/` is the data; `run/` a training that was killed in its eighth step of twelve, `whole.json` what it gives when
nothing kills it; `exported/` a folder of `gitllm export`, and `exported.json` what its model says; `shards/` one of
`gitllm m3it shard`, with features beside them, and `on_features.json` the losses of a training on these.
"""

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from omegaconf import OmegaConf
from PIL import Image

from tests.m3it_files import write_m3it_jsonl
from tests.small_run import write_small_run

HERE = Path(__file__).parent
ROOT = Path.cwd()
MODEL = {"model_type": "tiny_llama", "lora": {"rank": 4, "alpha": 8, "dropout": 0.0}, "dtype": "float32"}


def call(*command: object, fails: bool = False) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *map(str, command)], env=environment)
    assert (done.returncode != 0) == fails, done


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in lines(run / "metrics.jsonl") if "loss" in record]


def write_json(name: str, value: object) -> None:
    (HERE / name).write_text(json.dumps(value, indent=1) + "\n")


def examine_export() -> dict[str, list]:
    """Four tokens that the exported model says about each of three pictures, and how probable it finds an answer."""
    from gitllm_plugin.inference.pipeline import Pipeline

    pipeline = Pipeline.from_pretrained(HERE / "exported", dtype="float32")
    found: dict[str, list] = {"tokens": [], "losses": []}
    for row in lines(HERE / "rows" / "test.jsonl")[:3]:
        picture = Image.open(io.BytesIO(base64.b64decode(row["image_base64_str"]))).convert("RGB")
        text = pipeline.encode_answer(row["inputs"], row["outputs"])
        pixels = pipeline.pixels([picture])
        tokens = pipeline.model.generate(text.input_ids, None, pixels, min_new_tokens=4, max_new_tokens=4)
        found["tokens"].append(tokens[0].tolist())
        loss = pipeline.model(text.input_ids, text.attention_mask, pixels, text.labels).loss
        found["losses"].append(loss.item())
    return found


def make_runs(scratch: Path) -> None:
    """`run/`, `whole.json`, `exported/` and `answers` of the latter."""
    config = write_small_run(scratch, MODEL, save_every_steps=2, max_epoch=4)
    call("-m", "gitllm_plugin", "train", "--cfg-path", config)
    whole = (scratch / "output" / "latest").resolve()
    result = whole / "result" / "test_epochbest.jsonl"
    call("-m", "gitllm_plugin", "export", whole, HERE / "exported")
    write_json(
        "whole.json",
        {
            "losses": losses(whole),
            "metrics": json.loads((whole / "test_metrics.json").read_text()),
            "predictions": {row["instance_id"]: row["prediction"] for row in lines(result)},
        },
    )
    output = f"run.output_dir={scratch / 'killed'}"
    killed = [ROOT / "tests/runners/killed_run.py", "step", 8, "train", "--cfg-path", config, "--options", output]
    call(*killed, fails=True)
    shutil.copytree((scratch / "killed" / "latest").resolve(), HERE / "run")
    rows = HERE / "rows"
    rows.mkdir()
    for split in ("train", "val", "test"):
        shutil.copy(scratch / f"{split}.jsonl", rows)
    write_json("exported.json", examine_export())


def make_shards(scratch: Path) -> None:
    """`shards/` and `on_features.json`."""
    tree = scratch / "tree"
    write_m3it_jsonl(tree / "toy" / "train.jsonl", rows=12, texts_per_image=2)
    write_m3it_jsonl(tree / "toy" / "val.jsonl", rows=3, seed=1)
    shards = HERE / "shards"
    call("-m", "gitllm_plugin", "m3it", "shard", tree, shards, "--configs", "toy", "--max-size", "30KB")
    config = scratch / "wds.yaml"
    image = {"image_size": 32}
    run = {"task": "m3it", "runner": "git_llm", "device": "cpu", "precision": "fp32", "seed": 1, "init_lr": 1e-2}
    node = {
        "model": {"arch": "git_llm", **MODEL},
        "datasets": {
            "m3it_wds": {
                "texts_per_image": 2,
                "vis_processor": {"train": {"name": "git_llm_image_eval", **image}, "eval": image},
                "build_info": {"shards": str(shards), "features": True},
            }
        },
        "run": {**run, "max_epoch": 2, "batch_size_train": 2, "max_len": 4, "output_dir": str(scratch / "wds")},
    }
    config.write_text(OmegaConf.to_yaml(OmegaConf.create(node)))
    call("-m", "gitllm_plugin", "m3it", "features", "--cfg-path", config)
    call("-m", "gitllm_plugin", "train", "--cfg-path", config)
    write_json("on_features.json", losses((scratch / "wds" / "latest").resolve()))


if __name__ == "__main__":
    for path in HERE.iterdir():
        if path.name != "make.py":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with tempfile.TemporaryDirectory() as scratch:
        make_runs(Path(scratch))
        make_shards(Path(scratch))

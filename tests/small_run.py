"""A run of a tiny GIT-LLM on data made on the spot, for tests that train or evaluate for real."""

import os
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tests.m3it_files import write_m3it_jsonl

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
}
"""Of processes that run this checkout, one thread each."""
TINY_LORA = {"model_type": "tiny_llama", "lora": {"rank": 4, "alpha": 8, "dropout": 0.0}}


def write_small_run(folder: Path, model: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Write data and configuration of a run of seconds into ``folder``.

    24 rows about 12 pictures are trained on; the 7 of val and test divide neither by two processes nor by two a
    batch.

    Args:
        folder: also where the run writes, below `output`.
        model: the `model` node, besides `arch`.
        **changes: keys of `run`.

    Returns:
        The configuration's path.
    """
    write_m3it_jsonl(folder / "train.jsonl", rows=24, texts_per_image=2)
    for seed, split in enumerate(("val", "test"), start=1):
        write_m3it_jsonl(folder / f"{split}.jsonl", rows=7, seed=seed)
    run = {
        "task": "m3it",
        "runner": "git_llm",
        "device": "cpu",
        "precision": "fp32",
        "seed": 1,
        "init_lr": 1e-2,
        "max_epoch": 2,
        "batch_size_train": 4,
        "batch_size_eval": 2,
        "max_len": 4,
        "log_freq": 1,
        "valid_splits": ["val"],
        "test_splits": ["test"],
        "output_dir": str(folder / "output"),
    }
    image = {"image_size": 32}
    config = {
        "model": {"arch": "git_llm", **(model or {"model_type": "tiny_opt"})},
        "datasets": {
            "m3it": {
                "texts_per_image": 2,
                "vis_processor": {"train": image, "eval": image},
                "build_info": {
                    "annotations": {
                        split: {"storage": str(folder / f"{split}.jsonl")} for split in ("train", "val", "test")
                    }
                },
            }
        },
        "run": {**run, **changes},
    }
    path = folder / "config.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    return path

"""Configurations of LAVIS's models at tiny size, for its own runner and tasks on small copies of its data sets."""

from pathlib import Path

import torch
from omegaconf import OmegaConf

from tests.lavis_models import recipes

ROOT = Path(__file__).parents[2]
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


def write_config(name: str, folder: Path, output: Path, **run) -> Path:
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

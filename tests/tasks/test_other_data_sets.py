"""Classes of pictures, pairs of pictures and shards of the web, of LAVIS: trained on and evaluated by its tasks.

With the release of LAVIS; with its git main where ``GITLLM_TEST_LAVIS_MAIN`` names a checkout of it.
"""

import io
import json
import random
import tarfile
from pathlib import Path

import pytest
import yaml

import gitllm_plugin

gitllm_plugin.register()

from lavis.common.registry import registry  # noqa: E402

from gitllm_plugin.host import launch  # noqa: E402
from tests.benchmark_files import write_benchmarks  # noqa: E402
from tests.git_main import CHECKOUT, run_with_git_main  # noqa: E402
from tests.m3it_files import COLORS, make_square  # noqa: E402

COLOR_NAMES = sorted(COLORS)
CLASSES = ("n01440764", "n01443537", "n01484850", "n01491361")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("lavis_data")
    write_benchmarks(root)
    draw = random.Random(1)
    for split in ("train", "val"):
        for folder, color in zip(CLASSES, COLOR_NAMES, strict=True):
            for number in range(3):
                path = root / "imagenet" / split / folder / f"{split}_{number}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                make_square(color, draw).save(path)
    for shard in range(2):
        write_shard(root / f"{shard:05d}.tar", draw)
    return root


def write_shard(path, draw, captions=8):
    """A shard as img2dataset writes it: a picture, its caption as text, and all that is known as JSON."""
    with tarfile.open(path, "w") as tar:
        for number in range(captions):
            color = COLOR_NAMES[number % 4]
            picture = io.BytesIO()
            make_square(color, draw).save(picture, format="JPEG")
            about = {"caption": f"a {color} box", "url": "https://example.org", "key": str(number), "status": "success"}
            for ending, content in (
                ("jpg", picture.getvalue()),
                ("txt", about["caption"].encode()),
                ("json", json.dumps(about).encode()),
            ):
                member = tarfile.TarInfo(f"{number:09d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def processors(text=None):
    phases = ("train", "eval")
    node = {"vis_processor": {phase: {"name": f"git_llm_image_{phase}", "image_size": 32} for phase in phases}}
    return {**node, "text_processor": {phase: {"name": text} for phase in phases}} if text else node


def train(tmp_path, task, name, info, text=None, runner="git_llm", model=(), **run):
    """Train by a configuration of one data set; gives the runner and its last scores."""
    for key in ("output_dir", "result_dir"):  # LAVIS has one run a process
        registry.mapping["paths"].pop(key, None)
    node = {"data_type": "images", **processors(text), "build_info": info}
    run = {
        "task": task,
        "runner": runner,
        "device": "cpu",
        "output_dir": str(tmp_path / "output"),
        "init_lr": 1e-3,
        "batch_size_train": 2,
        "batch_size_eval": 2,
        "num_workers": 0,
        "train_splits": ["train"],
        "valid_splits": ["val"],
        "test_splits": [],
        "seed": 1,
        **run,
    }
    if runner == "git_llm":
        run["precision"] = "fp32"
    else:
        run |= {"lr_sched": "linear_warmup_cosine_lr", "min_lr": 0.0, "weight_decay": 0.0, "distributed": False}
        run |= {"amp": False, "evaluate": False, "world_size": 1, "dist_url": "env://"}
    model = {"arch": "git_llm", "model_type": "tiny_llama", "trainable": "proj", **dict(model)}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"model": model, "datasets": {name: node}, "run": run}))
    done = launch.train(path)
    log = Path(done.output_dir) / "log.txt"
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith('{"')]
    return done, {key: value for line in lines for key, value in line.items()}


RUNNERS = pytest.mark.parametrize("runner", ["git_llm", "runner_base"])


@RUNNERS
@pytest.mark.parametrize("names", [None, COLOR_NAMES], ids=["of the data set", "of the model"])
def test_classes_of_pictures(data, tmp_path, runner, names):
    info = {"images": {"storage": str(data / "imagenet")}, "splits": ["train", "val"]}
    model = {"prompt": "Name what the image shows."} | ({"class_names": names} if names else {})
    _, scores = train(tmp_path, "multimodal_classification", "imagenet", info, runner=runner, model=model, max_epoch=1)
    assert 0 <= float(scores["val_agg_metrics"]) <= 1


@RUNNERS
def test_pairs_of_pictures(data, tmp_path, runner):
    split = {"storage": [str(data / "nlvr" / "annotations" / "dev.json")]}
    info = {
        "annotations": {"train": split, "val": split, "test": None},
        "images": {"storage": str(data / "nlvr2" / "images")},
    }
    model = {"max_images": 2, "class_names": ["no", "yes"]}
    _, scores = train(
        tmp_path, "multimodal_classification", "nlvr", info, "git_llm_instruction", runner, model, max_epoch=1
    )
    assert float(scores["val_agg_metrics"]) in (0.0, 1.0)  # the made rows have one label


@pytest.mark.parametrize("runner", ["git_llm", "runner_iter"])
@pytest.mark.parametrize("text", ["blip_caption", "git_llm_instruction"])
def test_shards_of_the_web(data, tmp_path, runner, text):
    done, _ = train(
        tmp_path,
        "image_text_pretrain",
        "laion2B_multi",
        {"storage": str(data / "{00000..00001}.tar")},
        text,
        runner,
        max_iters=3,
        iters_per_inner_epoch=3,
        valid_splits=[],
    )
    assert list(Path(done.output_dir).glob("checkpoint_*.pth"))


@pytest.mark.slow
@pytest.mark.skipif(not CHECKOUT, reason="GITLLM_TEST_LAVIS_MAIN names no checkout of LAVIS's git main")
def test_the_same_with_git_main():
    run_with_git_main(__file__)

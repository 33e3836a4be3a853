"""LAVIS's own data sets, built by its builders from files of their forms, give batches that our model learns from."""

import io
import json
import math
import tarfile

import pytest
import torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

import gitllm_plugin
from gitllm_plugin.errors import DataError
from tests.benchmark_files import write_benchmarks
from tests.m3it_files import make_square

IMAGES = {"name": "git_llm_image_eval", "image_size": 32, "normalization": "clip"}
# By builder: images, the annotations that training reads, and more that the builder asks for.
TRAINED = {
    "coco_caption": ("coco/images", ["coco/annotations/coco_karpathy_train.json"]),
    "conceptual_caption_3m": ("coco/images", ["conceptual_caption/annotations/cc3m.json"]),
    "coco_vqa": ("coco/images", ["coco/annotations/vqa_train.json"]),
    "ok_vqa": ("coco/images", ["okvqa/annotations/vqa_train.json"]),
    "aok_vqa": ("coco/images", ["aokvqa/annotations/aokvqa_v1p0_val.json"]),
    "gqa": ("gqa/images", ["gqa/annotations/testdev_balanced_questions.json"]),
    "flickr30k": ("flickr30k/images", ["flickr30k/annotations/train.json"]),
    "nlvr": ("nlvr2/images", ["nlvr/annotations/dev.json"]),
    "snli_ve": ("flickr30k/images/flickr30k-images", ["snli/annotations/ve_test.json"]),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    gitllm_plugin.register()
    root = tmp_path_factory.mktemp("lavis")
    write_benchmarks(root)
    rows = json.loads((root / "flickr30k/annotations/test.json").read_text())
    train = [
        {"image": row["image"], "caption": text, "image_id": n} for n, row in enumerate(rows) for text in row["caption"]
    ]
    (root / "flickr30k/annotations/train.json").write_text(json.dumps(train))
    return root


@pytest.fixture(scope="module")
def model():
    from lavis.common.registry import registry

    gitllm_plugin.register()
    kind = registry.get_model_class("git_llm")
    config = OmegaConf.load(kind.default_config_path("tiny_llama")).model
    config.max_images = 2
    config.class_names = ["no", "maybe", "yes"]
    torch.manual_seed(0)
    return kind.from_config(config)


def build(name, info):
    from lavis.common.registry import registry

    processors = {
        "vis_processor": {"train": IMAGES, "eval": IMAGES},
        "text_processor": {"train": {"name": "git_llm_instruction"}, "eval": {"name": "git_llm_instruction"}},
    }
    config = {"data_type": "images", **processors, "build_info": info}
    return registry.get_builder_class(name)(OmegaConf.create(config)).build_datasets()


def loss_of(model, batch):
    output = model.train()(batch)
    output["loss"].backward()
    assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    model.zero_grad()
    return float(output["loss"].detach())


@pytest.mark.parametrize("name", TRAINED)
def test_it_feeds_training(name, root, model):
    images, annotations = TRAINED[name]
    files = [str(root / path) for path in annotations]
    info = {"images": {"storage": str(root / images)}, "annotations": {"train": {"url": files, "storage": files}}}
    data = build(name, info)["train"]
    batch = next(iter(DataLoader(data, batch_size=3, collate_fn=data.collater)))
    assert math.isfinite(loss_of(model, batch))


def test_shards_of_a_webdataset_feed_training(root, model):
    import random

    draw = random.Random(0)
    with tarfile.open(root / "00000.tar", "w") as tar:
        for number in range(6):
            buffer = io.BytesIO()
            make_square("red", draw).save(buffer, format="JPEG")
            for ending, content in (
                ("jpg", buffer.getvalue()),
                ("json", json.dumps({"caption": "a red box"}).encode()),
            ):
                member = tarfile.TarInfo(f"{number:05d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    data = build("laion2B_multi", {"storage": str(root / "00000.tar")})["train"]
    batches = DataLoader(data, batch_size=3)
    batch = next(iter(batches))
    assert len(batch["text_input"]) == 3 and math.isfinite(loss_of(model, batch))


def test_folders_of_classes_feed_training(root, model):
    data = build("imagenet", {"images": {"storage": str(root / "imagenet")}, "splits": ["val"]})["val"]
    batch = next(iter(DataLoader(data, batch_size=3, collate_fn=data.collater)))
    assert batch["label"].tolist() == [0, 1, 2]
    batch["text_input"] = ["what is it?"] * 3
    assert math.isfinite(loss_of(model, batch))


@pytest.mark.parametrize("name", ["nocaps", "coco_caption", "flickr30k"])
def test_it_feeds_evaluation(name, root, model):
    folder = name.removesuffix("_caption")
    file = {"nocaps": "nocaps_val", "coco": "coco_karpathy_test", "flickr30k": "test"}[folder]
    path = str(root / f"{folder}/annotations/{file}.json")
    info = {
        "images": {"storage": str(root / folder / "images")},
        "annotations": {"val": {"url": path, "storage": path}},
    }
    data = build(name, info)["val"]
    batch = next(iter(DataLoader(data, batch_size=3, collate_fn=getattr(data, "collater", None))))
    if name == "flickr30k":  # pictures alone: its task ranks data.text
        batch = {"image": batch["image"]}
    assert len(model.eval().generate(batch, max_length=3)) == 3


NOWHERE = "http://127.0.0.1:9"  # nothing listens there


@pytest.mark.parametrize(
    ("name", "files", "addresses", "told"),
    [
        ("coco_caption", ["there.json", "new/a b.json"], ["x", f"{NOWHERE}/b.json"], f"b.json' {NOWHERE}/b.json"),
        ("coco_vqa", ["new/vqa.json"], [f"{NOWHERE}/q.json"], f"vqa.json {NOWHERE}/q.json"),
        ("nlvr", ["new/nlvr.json"], ["elsewhere/nlvr.json"], "nlvr.json\n    no address is known"),
        ("flickr30k", ["new/one.json", "new/two.json"], [f"{NOWHERE}/one.json"], "two.json\n    no address is known"),
        ("snli_ve", ["new/snli.json"], None, "snli.json\n    no address is known"),
    ],
)
def test_what_is_not_on_disk_is_told_with_place_and_command(tmp_path, model, name, files, addresses, told):
    (tmp_path / "there.json").write_text("[]")
    paths = [str(tmp_path / file) for file in files]
    train = {"storage": paths, "url": addresses}
    with pytest.raises(DataError) as caught:
        build(name, {"images": {"storage": str(tmp_path)}, "annotations": {"train": train}})
    assert told in str(caught.value) and paths[-1] in str(caught.value) and "there.json" not in str(caught.value)

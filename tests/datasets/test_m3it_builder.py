"""The m3it data set through LAVIS's own functions."""

import json
import pickle

import pytest
import torch
from lavis.common.config import Config
from lavis.common.registry import registry
from lavis.datasets.builders import load_dataset
from lavis.datasets.data_utils import concat_datasets, reorg_datasets_by_split
from lavis.tasks.base_task import BaseTask
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from gitllm_plugin.config import check
from gitllm_plugin.datasets.builders.m3it_builder import M3ITBuilder
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.processors import git_llm_image, git_llm_instruction  # noqa: F401 - registers them
from tests.m3it_files import write_m3it_jsonl


def write_config(tmp_path, annotations: dict, **keys) -> str:
    processor = {"name": "git_llm_image_eval", "image_size": 8}
    node = {
        "vis_processor": {"train": {"image_size": 8}, "eval": processor},
        "build_info": {"annotations": annotations},
        **keys,
    }
    path = tmp_path / "data.yaml"
    OmegaConf.save(OmegaConf.create({"datasets": {"m3it": node}}), path)
    return str(path)


def load(tmp_path, annotations: dict, **keys) -> dict:
    return load_dataset("m3it", write_config(tmp_path, annotations, **keys))


def test_several_splits_and_configurations(tmp_path):
    caption = write_m3it_jsonl(tmp_path / "caption.jsonl", rows=3, config="caption")
    write_m3it_jsonl(tmp_path / "vqa" / "a.jsonl", rows=4, config="x", seed=1)
    write_m3it_jsonl(tmp_path / "vqa" / "b.jsonl", rows=2, config="x", seed=2)
    splits = load(
        tmp_path,
        {
            "train": {"storage": {"caption": f"{tmp_path}/caption.jsonl", "vqa": f"{tmp_path}/vqa/*.jsonl"}},
            "test": {"storage": f"{tmp_path}/vqa/b.jsonl"},
            "val": None,
        },
    )
    assert sorted(splits) == ["test", "train"]
    assert splits["train"].describe() == {
        "items": 9,
        "examples": 9,
        "images": 9,
        "configs": {"caption": 3, "vqa": 6},
    }
    item = splits["train"][0]
    assert item["image"].shape == (3, 8, 8)
    assert item["texts"] == [
        {
            "text_input": "##Instruction: Answer the question about the image. "
            "##Question: what color is the square? ##Answer:",
            "text_output": caption[0]["outputs"],
            "instance_id": "caption-0-0",
            "config": "caption",
            "references": [caption[0]["outputs"]],
            "question": "what color is the square?",
        }
    ]
    assert splits["test"][0]["texts"][0]["config"] == "x"


def test_texts_about_one_image_share_an_item(tmp_path):
    write_m3it_jsonl(tmp_path / "a.jsonl", rows=12, texts_per_image=5)
    storage = {"storage": str(tmp_path / "a.jsonl")}
    splits = load(tmp_path, {"train": storage, "val": storage, "test": storage}, texts_per_image=2)
    assert [len(group) for group in splits["train"].groups] == [2, 2, 1, 2, 2, 1, 2]
    assert [len(group) for group in splits["val"].groups] == [5, 5, 2]
    assert {split.num_examples for split in splits.values()} == {12}
    ids = [text["instance_id"] for item in map(splits["test"].__getitem__, range(3)) for text in item["texts"]]
    assert ids == [f"toy-0-{index}" for index in range(12)]


def test_texts_of_several_configurations_about_one_image_share_an_item_in_training(tmp_path):
    rows = write_m3it_jsonl(tmp_path / "caption.jsonl", rows=2, config="caption")
    asked = [{**row, "id": f"{row['id']}-asked", "config": "vqa", "inputs": "which?"} for row in reversed(rows)]
    (tmp_path / "vqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    storage = {"storage": [str(tmp_path / "caption.jsonl"), str(tmp_path / "vqa.jsonl")]}
    splits = load(tmp_path, {"train": storage, "val": storage}, texts_per_image=4)

    def configs(split):
        return [[text["config"] for text in splits[split][item]["texts"]] for item in range(len(splits[split]))]

    assert configs("train") == [["caption", "vqa"]] * 2
    assert configs("val") == [["caption"], ["caption"], ["vqa"], ["vqa"]]
    assert [text["instance_id"] for text in splits["train"][0]["texts"]] == ["caption-0-0", "caption-0-0-asked"]


def test_all_texts_about_an_image_share_an_item(tmp_path):
    write_m3it_jsonl(tmp_path / "a.jsonl", rows=12, texts_per_image=5)
    splits = load(tmp_path, {"train": {"storage": str(tmp_path / "a.jsonl")}}, texts_per_image="all")
    assert [len(group) for group in splits["train"].groups] == [5, 5, 2]
    node = {"build_info": {"annotations": {"train": {"storage": str(tmp_path / "a.jsonl")}}}}
    assert not check(M3ITBuilder.Settings, "datasets.m3it", {**node, "texts_per_image": "all"}).faults
    assert check(M3ITBuilder.Settings, "datasets.m3it", {**node, "texts_per_image": "many"}).faults


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_through_the_hosts_concatenation_and_a_data_loader(tmp_path, workers):
    write_m3it_jsonl(tmp_path / "a.jsonl", rows=6, config="a", texts_per_image=2)
    write_m3it_jsonl(tmp_path / "b.jsonl", rows=3, config="b", images_per_row=3)
    write_m3it_jsonl(tmp_path / "c.jsonl", rows=1, config="c", images_per_row=0)
    splits = load(
        tmp_path,
        {"train": {"storage": str(tmp_path / "[abc].jsonl")}},
        texts_per_image=2,
        allow_text_only=True,
    )
    dataset = concat_datasets(reorg_datasets_by_split({"m3it": splits}))["train"]
    loader = DataLoader(dataset, batch_size=10, collate_fn=dataset.collater, num_workers=workers)
    (batch,) = loader
    assert batch["image"].shape == (7, 3, 3, 8, 8)
    assert batch["num_images"].tolist() == [1, 1, 1, 3, 3, 3, 0]
    assert batch["image_index"].tolist() == [0, 0, 1, 1, 2, 2, 3, 4, 5, 6]
    assert batch["config"] == ["a"] * 6 + ["b"] * 3 + ["c"]
    assert torch.isfinite(batch["image"]).all()


def test_a_split_can_be_pickled_into_workers(tmp_path):
    write_m3it_jsonl(tmp_path / "a.jsonl", rows=2)
    train = load(tmp_path, {"train": {"storage": str(tmp_path / "a.jsonl")}})["train"]
    copy = pickle.loads(pickle.dumps(train))
    assert copy[1]["texts"] == train[1]["texts"]
    assert torch.equal(copy[1]["image"], train[1]["image"])


def test_limit_is_per_file(tmp_path):
    paths = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    for path in paths:
        write_m3it_jsonl(path, rows=5, config=path[-7])
    splits = load(tmp_path, {"train": {"storage": paths, "limit": 2}})
    assert splits["train"].describe()["configs"] == {"a": 2, "b": 2}


def test_lavis_config_with_options_and_task(tmp_path):
    write_m3it_jsonl(tmp_path / "a.jsonl", rows=4)
    node = {"build_info": {"annotations": {"train": {"storage": "missing.jsonl"}}}}
    config = Config.build_dataset_config(OmegaConf.create({"datasets": {"m3it": node}}))
    options = OmegaConf.from_dotlist(
        [
            f"datasets.m3it.build_info.annotations.train.storage={tmp_path}/a.jsonl",
            "datasets.m3it.vis_processor.train.image_size=4",
        ]
    )

    class BuiltConfig:
        datasets_cfg = OmegaConf.merge(config, options).datasets

    train = BaseTask().build_datasets(BuiltConfig)["m3it"]["train"]
    assert train[3]["image"].shape == (3, 4, 4)


def test_the_registered_name_and_the_defaults():
    assert registry.get_builder_class("m3it") is M3ITBuilder
    assert M3ITBuilder.default_config_path().endswith("configs/datasets/m3it/defaults.yaml")
    with pytest.raises(ConfigError, match="names no files.\nSet datasets.m3it.build_info.annotations.<split>.storage"):
        load_dataset("m3it")


@pytest.mark.parametrize(
    "annotations, keys, message",
    [
        (
            {"train": {"storge": "a"}},
            {},
            r"annotations.train.storge: unknown key 'storge' \(did you mean 'storage'\?\)",
        ),
        ({"validation": {}}, {}, "has the split 'validation'; splits are train, val, test, and further sets"),
        ({"train": "a.jsonl"}, {}, "annotations.train is 'a.jsonl', expected a mapping with the keys storage, limit"),
        ({"train": {"limit": 3}}, {}, "train.storage is missing, expected a path"),
        ({"train": {"storage": []}}, {}, r"train.storage is \[\], expected a path"),
        ({"train": {"storage": {"a": [3]}}}, {}, r"train.storage is \{'a': \[3\]\}, expected a path"),
        ({"train": {"storage": "a", "limit": 0}}, {}, "limit is 0, expected 1 or more rows of each file"),
        ({}, {"text_per_image": 2}, r"unknown key 'text_per_image' \(did you mean 'texts_per_image'\?\)"),
        ({}, {"texts_per_image": 0}, "datasets.m3it.texts_per_image is 0, expected 1 or more"),
        (
            {"train": {"storage": "a"}},
            {"text_processor": {"train": {"name": "x"}}},
            "processor 'x' is unknown; .*git",
        ),
    ],
)
def test_wrong_configuration(tmp_path, annotations, keys, message):
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, annotations, **keys)


def test_bad_files(tmp_path):
    with pytest.raises(DataError, match="no such file: "):
        load(tmp_path, {"train": {"storage": str(tmp_path / "no.jsonl")}})
    write_m3it_jsonl(tmp_path / "a.jsonl", rows=2, images_per_row=0)
    with pytest.raises(DataError, match="2 problems in the M3IT files:\n.*a.jsonl:1: the row has no image"):
        load(tmp_path, {"train": {"storage": str(tmp_path / "a.jsonl")}})


def test_broken_image_is_named_when_it_is_read(tmp_path):
    row = write_m3it_jsonl(tmp_path / "a.jsonl", rows=1)[0]
    row["image_base64_str"] = row["image_base64_str"][:80]
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    train = load(tmp_path, {"train": {"storage": str(tmp_path / "a.jsonl")}})["train"]
    with pytest.raises(DataError, match="example 'toy-0-0' at .*a.jsonl:1: the image is broken"):
        train[0]

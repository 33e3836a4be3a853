"""The m3it_instruct data set: any mixture from the tree as it is downloaded, through LAVIS's own functions."""

import logging
import pickle
import tarfile
from collections import Counter

import pytest
import torch
from lavis.common.registry import registry
from lavis.datasets.builders import load_dataset
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from gitllm_plugin.datasets.builders.m3it_builder import M3ITInstructBuilder
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.m3it import scan
from gitllm_plugin.m3it.catalog import BY_NAME, get_preset
from gitllm_plugin.m3it.shards.format import read_group
from gitllm_plugin.m3it.shards.make import make_shards
from gitllm_plugin.m3it.shards.plan import Settings
from gitllm_plugin.m3it.tree import find_tree
from gitllm_plugin.processors import git_llm_image, git_llm_instruction  # noqa: F401 - registers them
from tests.m3it_tree import write_entry, write_lines


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A tree with the captioning and video configurations."""
    root = tmp_path_factory.mktemp("m3it")
    for entry in [*get_preset("captioning"), *get_preset("video"), BY_NAME["vqa-v2"]]:
        write_entry(root, entry)
    return root


def load(tmp_path, root, keys=None, **info) -> dict:
    processor = {"name": "git_llm_image_eval", "image_size": 8}
    node = {
        "vis_processor": {"train": processor, "eval": processor},
        "build_info": {"root": str(root), "index_folder": str(tmp_path / "index"), **info},
        **(keys or {}),
    }
    path = tmp_path / "data.yaml"
    OmegaConf.save(OmegaConf.create({"datasets": {"m3it_instruct": node}}), path)
    return load_dataset("m3it_instruct", str(path))


def test_a_preset_with_all_its_splits(tmp_path, root):
    splits = load(tmp_path, root, preset="captioning", keys={"texts_per_image": 3})
    assert sorted(splits) == ["test", "train", "val"]
    described = splits["train"].describe()
    assert described["configs"] == {"coco": 16, "image-paragraph-captioning": 3, "textcap": 3}
    assert described["examples"] == 22
    assert described["images"] == 9
    assert [len(group) for group in splits["train"].groups[:6]] == [3, 2, 3, 3, 3, 2]
    assert splits["test"].describe()["configs"] == {"coco": 16, "image-paragraph-captioning": 3}
    item = splits["train"][1]
    assert item["image"].shape == (3, 8, 8)
    assert [text["text_output"] for text in item["texts"]] == ["caption 3 of coco train 0", "caption 4 of coco train 0"]
    assert item["texts"][0]["instance_id"] == "coco/train/1/4"
    assert "Instruction: " in item["texts"][0]["text_input"]


@pytest.mark.parametrize("workers", [0, 2])
def test_frames_and_single_images_in_a_batch(tmp_path, root, workers):
    splits = load(tmp_path, root, configs=["msrvtt", "vqa-v2"], splits=["train"])
    dataset = pickle.loads(pickle.dumps(splits["train"]))
    (batch,) = DataLoader(dataset, batch_size=6, collate_fn=dataset.collater, num_workers=workers)
    assert batch["image"].shape == (6, 3, 3, 8, 8)
    # in the order that was asked for
    assert batch["config"] == ["msrvtt"] * 3 + ["vqa-v2"] * 3
    assert batch["num_images"].tolist() == [3, 3, 3, 1, 1, 1]
    assert batch["references"][4] == ["The answer is vqa-v2 train 1"]


def test_the_files_are_read_once(tmp_path, root, monkeypatch):
    first = load(tmp_path, root, preset="video")
    monkeypatch.setattr(scan, "scan_slice", None)
    again = load(tmp_path, root, preset="video")
    assert again["val"].describe() == first["val"].describe()
    assert again["val"][4]["texts"] == first["val"][4]["texts"]
    assert torch.equal(again["val"][4]["image"], first["val"][4]["image"])


def test_a_changed_file_is_read_again(tmp_path):
    entry = BY_NAME["vqa-v2"]
    write_entry(tmp_path / "tree", entry, rows=2)
    assert len(load(tmp_path, tmp_path / "tree", configs="vqa-v2")["train"]) == 2
    write_entry(tmp_path / "tree", entry, rows=4)
    assert len(load(tmp_path, tmp_path / "tree", configs="vqa-v2")["train"]) == 4


def test_seeds_choose_other_instructions(tmp_path, root):
    texts = []
    for seed in (0, 0, 1):
        train = load(tmp_path, root, configs=["coco"], splits=["train"], seed=seed)["train"]
        texts.append([train[index]["texts"][0]["text_input"] for index in range(16)])
    assert texts[0] == texts[1] != texts[2]


def test_a_damaged_index_is_made_again_and_no_folder_is_an_error(tmp_path, root):
    first = load(tmp_path, root, preset="video")
    for path in (tmp_path / "index").glob("*.npz"):
        path.write_bytes(path.read_bytes()[:100])
    assert load(tmp_path, root, preset="video")["val"].describe() == first["val"].describe()
    with pytest.raises(DataError, match="cannot be made .* Name another build_info.index_folder"):
        load(tmp_path, root, preset="video", index_folder=str(tmp_path / "data.yaml" / "x"))


def test_the_tree_gives_the_examples_of_its_shards(tmp_path, root):
    tree = find_tree(root, ["coco", "ivqa"], ["train"])
    make_shards(tree, tmp_path / "out", Settings(10**6))
    expected = []
    for config in ("coco", "ivqa"):
        with tarfile.open(tmp_path / "out" / config / "train" / "000000.tar") as tar:
            records: dict[str, dict[str, bytes]] = {}
            for member in tar:
                records.setdefault(member.name.split(".")[0], {})[member.name] = tar.extractfile(member).read()
        groups = [read_group(record, key) for key, record in records.items()]
        expected += [(group.images, text) for group in groups for text in group.texts]
    dataset = load(tmp_path, root, configs=["coco", "ivqa"], splits=["train"])["train"]
    assert [(group.images, *group.texts) for group in dataset.examples] == expected


def test_what_cannot_be_used_is_left_out_and_told(tmp_path, caplog):
    entry = BY_NAME["coco"]
    made = write_entry(tmp_path, entry, rows=3)
    file = tmp_path / "data" / "captioning" / "coco" / "train.jsonl"
    write_lines(file, [b"{", *(row.row for row in made["train"]), b"[]", {**made["train"][0].row, "image": None}])
    with caplog.at_level(logging.WARNING):
        splits = load(tmp_path, tmp_path, configs=["coco"])
    assert splits["train"].num_examples == 16
    (told,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert "M3IT train: 3 rows or texts are left out" in told
    assert "2 json (the line is not a JSON object), the first: data/captioning/coco/train.jsonl:1: not JSON" in told
    assert "1 no_image" in told


def test_missing_files_are_an_error_unless_allowed(tmp_path, root, caplog):
    with pytest.raises(DataError, match=r"missing of M3IT (.*\n)+.*st-vqa/train: (.*\n)+.*allow_missing"):
        load(tmp_path, root, configs=["coco", "st-vqa"])
    with caplog.at_level(logging.WARNING):
        splits = load(tmp_path, root, configs=["coco", "st-vqa"], allow_missing=True)
    assert Counter(text["config"] for item in splits["val"] for text in item["texts"]) == {"coco": 16}
    assert "st-vqa/train: " in caplog.text


def test_limit_is_for_a_quick_try(tmp_path, root):
    splits = load(tmp_path, root, preset="captioning", limit=1)
    assert splits["train"].describe()["configs"] == {"coco": 5, "image-paragraph-captioning": 1, "textcap": 1}
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    "info, message",
    [
        ({}, "needs a tree and a choice of it.*\n.*preset: article_exp3.*\n.*article_exp3, paper_train"),
        ({"preset": "video", "configs": ["coco"]}, "needs a tree and a choice of it"),
        ({"preset": "videos"}, "unknown preset 'videos'; there are: .*video"),
        (
            {"preset": "video", "splits": ["validation"]},
            r"splits is \['validation'\], expected train, val, test, or a list",
        ),
        ({"configs": [3]}, r"build_info.configs is \[3\], expected a name or a list of names"),
        ({"preset": "video", "limit": 0}, "limit is 0, expected 1 or more rows of each file"),
        ({"preset": "video", "rot": 1}, r"unknown key 'rot' \(did you mean 'root'\?\)"),
    ],
)
def test_wrong_configuration(tmp_path, root, info, message):
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, root, **info)


def test_the_registered_name_and_the_defaults():
    assert registry.get_builder_class("m3it_instruct") is M3ITInstructBuilder
    with pytest.raises(ConfigError, match="needs a tree"):
        load_dataset("m3it_instruct")

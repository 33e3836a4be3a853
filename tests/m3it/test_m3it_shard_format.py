"""What a folder of shards looks like, and what is said where it does not."""

import dataclasses
import io
import json
import tarfile

import pytest
import webdataset as wds
from PIL import Image

from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it.group import Group, Text
from gitllm_plugin.m3it.shards.format import (
    Manifest,
    Shard,
    SplitManifest,
    add_to_tar,
    image_extension,
    read_group,
    read_manifest,
    write_group,
    write_manifest,
)
from tests.m3it_files import encode


def make_image(file_format: str) -> bytes:
    return encode(Image.new("RGB", (4, 3), "red"), file_format)


GROUP = Group(
    config="coco.v1",
    split="train",
    number=7,
    images=(make_image("JPEG"), make_image("PNG")),
    texts=(
        Text("coco.v1/train/7/1", "coco.v1", "Look.", "", ("一", "b")),
        Text("coco.v1/train/7/2", "coco.v1", "See.", "why?", ("c",)),
    ),
)
TEXT_ONLY = dataclasses.replace(GROUP, number=8, images=())


def write_tar(path, *groups: Group) -> None:
    with tarfile.open(path, "w") as tar:
        for group in groups:
            add_to_tar(tar, write_group(group))


def test_members_of_a_record():
    assert [name for name, _ in write_group(GROUP)] == [
        "coco_v1-train-00000007.0.jpg",
        "coco_v1-train-00000007.1.png",
        "coco_v1-train-00000007.json",
    ]
    ((_, text),) = write_group(TEXT_ONLY)
    assert json.loads(text)["texts"][1] == {
        "id": "coco.v1/train/7/2",
        "instruction": "See.",
        "question": "why?",
        "answers": ["c"],
    }


def test_records_come_back_by_names_and_through_webdataset(tmp_path):
    assert read_group(dict(write_group(GROUP)), "x") == GROUP
    write_tar(tmp_path / "a.tar", GROUP, TEXT_ONLY)
    dataset = wds.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False)
    assert [read_group(sample, sample["__key__"]) for sample in dataset] == [GROUP, TEXT_ONLY]


def test_where_a_record_begins(tmp_path):
    """A record is found by the blocks of those before it, and is a tar file's content by itself."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        blocks = [add_to_tar(tar, write_group(group)) for group in (GROUP, TEXT_ONLY)]
    data = (tmp_path / "a.tar").read_bytes()[512 * blocks[0] : 512 * sum(blocks)]
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == ["coco_v1-train-00000008.json"]


def test_equal_records_make_equal_files(tmp_path):
    write_tar(tmp_path / "a.tar", GROUP, TEXT_ONLY)
    write_tar(tmp_path / "b.tar", GROUP, TEXT_ONLY)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
def test_extension_by_content(file_format):
    assert image_extension(make_image(file_format)) == {"JPEG": "jpg"}.get(file_format, file_format.lower())
    assert image_extension(b"") == "bin"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda members: members.pop("coco_v1-train-00000007.json"), "x: the record has no JSON, so it breaks off"),
        (lambda members: members.pop("coco_v1-train-00000007.0.jpg"), "x: not a record of this format .*KeyError: 0"),
        (lambda members: members.update({"k.2.jpg": b""}), "x: 3 image files where the JSON says 2"),
        (lambda members: members.update({"k.json": b"{"}), "x: not a record of this format .*JSONDecodeError"),
        (lambda members: members.update({"k.json": b"{}"}), "x: not a record of this format .*'config'"),
    ],
)
def test_records_that_are_not_whole(change, message):
    members = dict(write_group(GROUP))
    change(members)
    with pytest.raises(DataError, match=message):
        read_group(members, "x")


SHARD = Shard("coco/train/000000.tar", "0" * 64, 2, 10, 3, 10240, record_blocks="7 9", record_texts="4 6")
MANIFEST = Manifest(
    {"coco": {"train": SplitManifest((SHARD, SHARD), {"json": 2}, ({"file": "a.jsonl", "bytes": 9},), {"seed": 0})}}
)


def test_manifest_comes_back_from_file_folder_and_parsed_json(tmp_path):
    write_manifest(MANIFEST, tmp_path)
    content = (tmp_path / "manifest.json").read_bytes()
    assert read_manifest(tmp_path) == read_manifest(str(tmp_path / "manifest.json")) == MANIFEST
    assert read_manifest(json.loads(content)) == MANIFEST
    part = json.loads(content)["configs"]["coco"]["train"]
    assert (part["groups"], part["texts"], part["images"], part["bytes"]) == (4, 20, 6, 20480)
    write_manifest(MANIFEST, tmp_path)
    assert (tmp_path / "manifest.json").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda content: content.update(format=2), "format 2, this version reads 1"),
        (lambda content: content.update(configs=[]), r"configs is \[\], expected an object"),
        (lambda content: content["configs"]["coco"]["train"].update(texts=3), "texts is 3, but its shards have 20"),
        (lambda content: content["configs"]["coco"]["train"].update(shards=None), "shards is None, expected a list"),
        (lambda content: content["configs"]["coco"]["train"].update(skips={"jsn": 1}), "skips names jsn; the kinds"),
        (
            lambda content: content["configs"]["coco"]["train"]["shards"][1].update(file="../x", groups=-1),
            r"shards\[1\] lacks or has a wrong file, groups",
        ),
        (
            lambda content: content["configs"]["coco"]["train"]["shards"][1].update(record_texts="4 5"),
            r"shards\[1\] lists other records than its 2 with 10 texts",
        ),
    ],
)
def test_a_manifest_that_is_not_one(change, message):
    content = json.loads(json.dumps(MANIFEST.to_json()))
    change(content)
    with pytest.raises(DataError, match=message):
        read_manifest(content)


def test_no_manifest(tmp_path):
    with pytest.raises(DataError, match="there is no .*manifest.json. `gitllm m3it shard` writes one"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="manifest.json is not JSON"):
        read_manifest(tmp_path)

"""What LAVIS's data sets lack is told at once, with place and command, and nothing is fetched unasked."""

import json
import os
import shlex
import socket
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

import gitllm_plugin
from gitllm_plugin.cli.main import main
from gitllm_plugin.errors import DataError
from gitllm_plugin.host.missing_data import DOWNLOAD, find_lacks
from tests.benchmark_files import write_benchmarks
from tests.git_main import CHECKOUT, run_with_git_main  # noqa: E402

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "tests" / "host" / "scripts" / "of_lavis" / "train.py"
NAMED = {
    "coco_caption",
    "coco_vqa",
    "ok_vqa",
    "aok_vqa",
    "gqa",
    "nocaps",
    "flickr30k",
    "nlvr",
    "snli_ve",
    "imagenet",
    "laion2B_multi",
    "git_llm_visdial",
    "conceptual_caption_3m",
    "avsd_dialogue",
    "msrvtt_caption",
    "coco_retrieval",
    "vg_vqa",
    "sbu_caption",
}


def builders():
    """Give LAVIS's builders, and ours that get their files as those do, by name."""
    gitllm_plugin.register()
    from lavis.common.registry import registry
    from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder

    found = registry.mapping["builder_name_mapping"].items()
    return {name: each for name, each in found if each.build_datasets is BaseDatasetBuilder.build_datasets}


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """An empty cache, a folder to stand in, and no network."""
    gitllm_plugin.register()
    from lavis.common.registry import registry

    monkeypatch.setitem(registry.mapping["paths"], "cache_root", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(DOWNLOAD, raising=False)
    return tmp_path


@pytest.fixture
def asked(monkeypatch):
    """Addresses that somebody tried to reach; nobody gets anywhere."""
    tried = []

    def refuse(self, address, *rest):
        tried.append(address)
        raise ConnectionRefusedError(f"no network: {address}")

    def look_up(host, *rest, **more):
        tried.append(host)
        raise socket.gaierror(f"no network: {host}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return tried


def configuration(builder, kind):
    """Read a builder's own file, or None where it cannot be read: git main has such."""
    from lavis.datasets.builders.base_dataset_builder import load_dataset_config

    try:
        return load_dataset_config(builder.default_config_path(kind))
    except (OSError, YAMLError, OmegaConfBaseException):
        return None


def places(config):
    """List the places of files and folders that a configuration names, as they stand there."""
    info = OmegaConf.to_container(config.build_info)
    nodes = [node for split, node in info.get("annotations", {}).items() if node]
    kinds = [config.data_type] if isinstance(config.data_type, str) else config.data_type
    nodes += [info[kind] for kind in kinds if kind in info]
    storages = [node["storage"] for node in nodes]
    return [place for storage in storages for place in ([storage] if isinstance(storage, str) else storage) if place]


def test_every_data_set_says_all_that_it_lacks(empty, asked):
    tried = 0
    assert set(builders()) >= NAMED
    for name, builder in builders().items():
        for kind in builder.DATASET_CONFIG_DICT:
            config = configuration(builder, kind)
            if config is None:
                continue
            with pytest.raises(DataError) as caught:
                builder(config).build_datasets()
            told = str(caught.value)
            assert told.startswith(f"the data set {name} lacks"), told
            for place in places(config):
                assert place.rstrip("/") in told, (name, place)
            tried += 1
    assert tried >= len(NAMED) and not asked
    assert not list(empty.rglob("*.json"))


@pytest.mark.parametrize("name", ["coco_caption", "coco_vqa", "nocaps", "didemo_retrieval"])
def test_the_command_puts_the_file_where_it_is_read(name, empty, asked):
    builder = builders()[name]()
    lacks = [lack for lack in find_lacks(name, builder) if lack.fetched]
    assert lacks
    for lack in lacks:
        program, *words = shlex.split(lack.how)
        assert program == "curl" and lack.place == words[words.index("-o") + 1] and words[-1].startswith("https://")
        Path(lack.place).parent.mkdir(parents=True, exist_ok=True)
        Path(lack.place).write_text("[]")
    assert not any(lack.fetched for lack in find_lacks(name, builder))


@pytest.mark.parametrize("folder", ["missing", "empty"])
@pytest.mark.parametrize("name", ["ok_vqa", "gqa", "flickr30k", "vg_caption"])
def test_pictures_are_missed_too(folder, name, empty, asked):
    place = empty / "pictures of mine"
    if folder == "empty":
        place.mkdir()
    builder = builders()[name]()
    builder.config.build_info.images.storage = str(place)
    (lack,) = [lack for lack in find_lacks(name, builder) if lack.what == "images"]
    assert lack.place == f"{place}{os.sep}"
    assert "https://" in lack.how or shlex.quote(str(place)) in lack.how
    place.mkdir(exist_ok=True)
    (place / "one.jpg").write_bytes(b"")
    assert not [lack for lack in find_lacks(name, builder) if lack.what == "images"]


def test_shards_and_folders_of_classes_are_missed_by_name(empty, asked):
    shards = builders()["laion2B_multi"]()
    shards.config.build_info.storage = str(empty / "{00..02}.tar")
    (empty / "00.tar").write_bytes(b"")
    (lack,) = find_lacks("laion2B_multi", shards)
    assert lack.what == "2 of 3 shards, the first" and lack.place == str(empty / "01.tar")
    shards.config.build_info.storage = "pipe:curl -s https://example.org/{00..02}.tar"
    assert not find_lacks("laion2B_multi", shards)
    classes = builders()["imagenet"]()
    classes.config.build_info = {"images": {"storage": str(empty)}, "splits": ["train", "val"]}
    assert [lack.place for lack in find_lacks("imagenet", classes)] == [f"{empty / s}/" for s in ("train", "val")]


def test_a_file_elsewhere_on_this_machine_is_copied_as_before(empty, asked):
    from lavis.datasets.builders import load_dataset

    write_benchmarks(empty / "lavis")
    own = empty / "lavis" / "coco" / "annotations" / "coco_karpathy_train.json"
    node = {"train": {"url": str(own), "storage": "coco/new/train.json"}, "val": None, "test": None}
    info = {"annotations": node, "images": {"storage": str(empty / "lavis" / "coco" / "images")}}
    config = {"datasets": {"coco_caption": {"data_type": "images", "build_info": info}}}
    OmegaConf.save(OmegaConf.create(config), empty / "config.yaml")
    assert len(load_dataset("coco_caption", str(empty / "config.yaml"))["train"]) == 15
    assert (empty / "cache" / "coco" / "new" / "train.json").is_file() and not asked


def of_benchmarks(root, **annotations):
    """COCO's captions below ``root``; annotations by split."""
    splits = {"train": None, "val": None, "test": None, **annotations}
    phases = {phase: {"name": "git_llm_image_train", "image_size": 16, "horizontal_flip": True} for phase in ("train",)}
    info = {"annotations": splits, "images": {"storage": str(root / "coco" / "images")}}
    node = {"data_type": "images", "vis_processor": phases, "build_info": info}
    return builders()["coco_caption"](OmegaConf.create(node))


@pytest.mark.parametrize("wrong", ["nested", "no folder", "no file"])
def test_pictures_that_were_unpacked_elsewhere_are_missed(wrong, empty, asked):
    write_benchmarks(empty)
    folder = empty / "coco" / "images" / "val2014"
    rows = [
        {"image": f"{part}/COCO_{part}_{1:012d}.jpg", "caption": "a box", "image_id": part}
        for part in ("val2014", "train2014")
    ]
    (empty / "rows.json").write_text(json.dumps(rows))
    builder = of_benchmarks(empty, train={"storage": [str(empty / "rows.json")]})
    lost = folder / "COCO_val2014_000000000001.jpg"
    train = folder.with_name("train2014") / "COCO_train2014_000000000001.jpg"
    if wrong == "nested":
        folder.rename(empty / "val2014")
        folder.mkdir()
        (empty / "val2014").rename(folder / "val2014")
    elif wrong == "no file":
        lost.unlink()
    else:
        lost = train
    if lost is not train:
        train.parent.mkdir()
        train.write_bytes(b"no picture, but a file")
    with pytest.raises(DataError) as caught:
        builder.build_datasets()
    assert f"a file that train names: {lost}" in str(caught.value) and "unzip" in str(caught.value)
    assert str(train) not in str(caught.value) or lost is train


def test_looking_at_pictures_draws_no_random_numbers(empty, asked):
    import random

    import numpy as np
    import torch

    write_benchmarks(empty)
    builder = of_benchmarks(empty, train={"storage": [str(empty / "coco/annotations/coco_karpathy_train.json")]})

    def drawn():
        return random.random(), np.random.rand(), torch.rand(1).item()

    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    wanted = drawn()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    assert len(builder.build_datasets()["train"]) == 15
    assert drawn() == wanted


@pytest.mark.parametrize("given", ["1", "true", "yes"])
def test_who_asks_for_downloads_gets_them(given, empty, asked, monkeypatch):
    monkeypatch.setenv(DOWNLOAD, given)
    builder = builders()["coco_caption"]()
    with pytest.raises(DataError, match="coco/images/") as caught:  # pictures are nothing that LAVIS fetches
        builder.build_datasets()
    assert "karpathy" not in str(caught.value) and not asked
    (empty / "cache" / "coco" / "images").mkdir(parents=True)
    (empty / "cache" / "coco" / "images" / "1.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"could not be fetched[\s\S]*curl .*coco_karpathy_train.json"):
        builder.build_datasets()
    assert asked


@pytest.mark.parametrize("given", ["0", "", "false"])
def test_who_says_no_gets_none(given, empty, asked, monkeypatch):
    monkeypatch.setenv(DOWNLOAD, given)
    with pytest.raises(DataError, match=f"{DOWNLOAD}=1"):
        builders()["aok_vqa"]().build_datasets()
    assert not asked


@pytest.mark.parametrize("command", [["train"], ["train", "--dry-run"], ["evaluate"], ["run", str(SCRIPT)]])
def test_a_run_names_what_all_its_data_sets_lack(command, empty, asked, capsys, monkeypatch):
    runs = {
        "train": {"task": "captioning", "runner": "git_llm", "max_iters": 1, "init_lr": 1e-4, "device": "cpu"},
        "evaluate": {"task": "captioning", "runner": "git_llm", "test_splits": ["test"], "allow_untrained": True},
    }
    config = {
        "model": {"arch": "git_llm", "model_type": "tiny_llama"},
        "datasets": {"coco_caption": {}, "coco_vqa": {}, "gqa": {}},
        "run": {**runs["evaluate" if command == ["evaluate"] else "train"], "output_dir": str(empty / "output")},
    }
    OmegaConf.save(OmegaConf.create(config), empty / "run.yaml")
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main([*command, "--cfg-path", str(empty / "run.yaml")]) == 2
    told = capsys.readouterr().err
    assert [f"the data set {name} lacks" in told for name in config["datasets"]] == [True] * 3
    assert "coco/annotations/vqa_val.json" in told and "gqa/images" in told and not asked


@pytest.mark.slow
@pytest.mark.skipif(not CHECKOUT, reason="GITLLM_TEST_LAVIS_MAIN names no checkout of LAVIS's git main")
def test_git_mains_data_sets_say_it_too():
    run_with_git_main(__file__)


@pytest.mark.parametrize(
    ("name", "keys", "given"),
    [
        ("coco_caption", ["annotations", "train"], "notes/mine_train.json"),
        ("coco_vqa", ["annotations", "test"], "./questions.json"),
        ("flickr30k", ["annotations", "val"], "a b.json"),
        ("coco_caption", ["images"], "pictures"),
    ],
)
def test_what_lies_where_one_stands_is_named_whole(name, keys, given, empty):
    place = empty / given
    place.parent.mkdir(exist_ok=True)
    if keys == ["images"]:
        place.mkdir()
    else:
        place.write_text("[]")
    builder = builders()[name](OmegaConf.create({"data_type": "images", "build_info": {keys[0]: {}}}))
    OmegaConf.update(builder.config.build_info, ".".join([*keys, "storage"]), given)
    found = [lack for lack in find_lacks(name, builder) if given.strip("./") in lack.place]
    assert [lack.how.rsplit("write ", 1)[1] for lack in found] == [str(place)]


@pytest.mark.parametrize("more", [0, 1, 2, 3])
def test_questions_may_come_without_a_list_of_answers(more, tmp_path):
    gitllm_plugin.register()
    from lavis.datasets.datasets.coco_vqa_datasets import COCOVQAEvalDataset

    files = [tmp_path / "asked.json", *(tmp_path / f"{n}.json" for n in ("answers", "questions", "annotations"))]
    files = [files[0], *(files[1:2] if more in (1, 3) else ()), *(files[2:] if more > 1 else ())]
    for path in files:
        path.write_text('["yes", "no"]' if path.stem == "answers" else '[{"question_id": 1}]')
    data = COCOVQAEvalDataset(None, None, str(tmp_path), [str(path) for path in files])
    assert data.answer_list == (["yes", "no"] if more in (1, 3) else None)
    of_challenge = (data.coco_fmt_qust_file, data.coco_fmt_anno_file)
    assert of_challenge == (tuple(map(str, files[-2:])) if more > 1 else (None, None))

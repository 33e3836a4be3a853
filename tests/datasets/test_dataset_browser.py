"""LAVIS's dataset browser shows its data sets and ours: the method that it calls, and the browser itself.

The browser lies in LAVIS's repository alone, and needs a Streamlit that still has ``st.cache`` (1.33).
"""

import importlib.util
import json
import os
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from PIL import Image

import gitllm_plugin
from tests.benchmark_files import write_benchmarks
from tests.m3it_files import IMAGE_SIZE, write_m3it_jsonl

CHECKOUT = os.environ.get("GITLLM_TEST_LAVIS_MAIN", "")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """LAVIS's cache, with the benchmarks in it."""
    gitllm_plugin.register()
    from lavis.common.registry import registry

    monkeypatch.setitem(registry.mapping["paths"], "cache_root", str(tmp_path))
    write_benchmarks(tmp_path)
    folder = tmp_path / "coco" / "annotations"
    for split in ("val", "test"):
        (folder / f"coco_karpathy_{split}.json").write_bytes((folder / "coco_karpathy_train.json").read_bytes())
    return tmp_path


def write_config(path, name, **node):
    OmegaConf.save(OmegaConf.create({"datasets": {name: {"data_type": "images", **node}}}), path)
    return str(path)


def m3it_of(folder, texts=1, images=1, rows=12):
    write_m3it_jsonl(folder / "rows.jsonl", rows=rows, texts_per_image=texts, images_per_row=images)
    info = {"annotations": {"train": {"storage": str(folder / "rows.jsonl")}}}
    more = {"texts_per_image": texts, "allow_text_only": images == 0}
    return write_config(folder / "m3it.yaml", "m3it", build_info=info, **more)


def visdial_of(folder):
    file = folder / "visdial" / "annotations" / "visdial_1.0_val.json"
    info = {"annotations": {"val": {"storage": str(file)}}, "images": {"storage": str(folder / "visdial" / "images")}}
    return write_config(folder / "visdial.yaml", "git_llm_visdial", build_info=info)


@pytest.mark.parametrize(("texts", "images"), [(1, 0), (1, 1), (3, 1), (1, 2), (3, 3)])
def test_rows_of_m3it_are_shown(cache, texts, images):
    from lavis.datasets.builders import load_dataset

    data = load_dataset("m3it", m3it_of(cache, texts, images))["train"]
    shown = data.displ_item(0)
    names = ["question"] if texts == 1 else [f"question {number}" for number in (1, 2, 3)]
    assert [name for name in shown if name.startswith("question")] == names
    assert all(shown[name].startswith("what color is the square") for name in names)
    assert shown["file"] == f"{data.vis_root}/rows.jsonl:1" and "image" in data[0]
    pictures = shown["image"] if images > 1 else [shown["image"]]
    assert all(isinstance(picture, Image.Image) for picture in pictures)
    assert [picture.size for picture in pictures] == ([(IMAGE_SIZE,) * 2] * images or [(1, 1)])


def test_what_was_said_before_is_shown(cache):
    from lavis.datasets.builders import load_dataset

    config = m3it_of(cache, rows=1)
    row = json.loads((cache / "rows.jsonl").read_text())
    (cache / "rows.jsonl").write_text(json.dumps(row | {"turns": [["is it a box?", "yes"], ["a large one?", "no"]]}))
    data = load_dataset("m3it", config)["train"]
    first, _, last = (data.displ_item(index) for index in range(3))
    assert "before" not in first
    assert last["before"] == f"what color is the square? {row['outputs']} / is it a box? yes"
    assert (last["question"], last["answer"]) == ("a large one?", "no")


def test_turns_of_a_dialogue_are_shown(cache):
    from lavis.datasets.builders import load_dataset

    data = load_dataset("git_llm_visdial", visdial_of(cache))["val"]
    shown = [data.displ_item(index) for index in range(len(data))]
    assert len(shown) == 6
    assert [each["answer"] for each in shown[:3]] == ["yes", "green", "no"]
    assert all(each["image"].size == (IMAGE_SIZE, IMAGE_SIZE) and each["file"].endswith(".jpg") for each in shown)


def has_old_streamlit():
    if not importlib.util.find_spec("streamlit"):
        return False
    import streamlit

    return hasattr(streamlit, "cache")


@pytest.mark.slow
@pytest.mark.skipif(not CHECKOUT, reason="GITLLM_TEST_LAVIS_MAIN names no checkout of LAVIS's git main")
@pytest.mark.skipif(not has_old_streamlit(), reason="needs streamlit==1.33.0")
def test_the_browser_itself(cache, monkeypatch):
    from lavis.datasets import builders
    from streamlit.testing.v1 import AppTest

    # Ours have no default files: the browser's `load_dataset(name)` is given a configuration.
    configs, load = {"m3it": m3it_of(cache)}, builders.load_dataset
    monkeypatch.setattr(builders, "load_dataset", lambda name: load(name, configs.get(name)))
    app = AppTest.from_file(str(Path(CHECKOUT) / "app" / "dataset_browser.py"), default_timeout=120).run()
    (told,) = app.exception  # the first of all names has nothing on this disk
    assert "lacks on this machine" in told.message and "curl" in told.message
    for name, count, said in (("coco_caption", 15, "**caption**"), ("m3it", 12, "**answer**")):
        app.sidebar.selectbox[0].select(name).run()
        assert not app.exception
        assert f"Loaded {name}/train with **{count}** records" in app.success[0].value
        assert sum(said in text.value for text in app.markdown) == 12

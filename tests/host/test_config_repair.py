"""`--options model.model_type=...` and `datasets.NAME.type=...` choose the defaults of that type."""

import argparse

import pytest


@pytest.fixture
def config(host, tmp_path):
    from lavis.common.config import Config

    (tmp_path / "config.yaml").write_text(
        "model: {arch: blip_caption, model_type: base_coco}\ndatasets: {coco_caption: {}}\nrun: {task: captioning}\n"
    )

    def load(*options):
        return Config(argparse.Namespace(cfg_path=str(tmp_path / "config.yaml"), options=list(options)))

    return load


def test_the_type_in_the_file_without_options(config):
    assert config().model_cfg.vit_type == "base"


def test_the_type_in_the_options_brings_its_defaults(config):
    model = config("model.model_type=large_coco").model_cfg
    assert (model.model_type, model.vit_type) == ("large_coco", "large")


def test_other_options_are_merged_last(config):
    assert config("model.model_type=large_coco", "model.vit_type=huge").model_cfg.vit_type == "huge"


def test_a_data_set_and_its_type_by_options(config):
    datasets = config("datasets.vg_caption.data_type=images", "datasets.aok_vqa.type=default").datasets_cfg
    assert set(datasets) == {"coco_caption", "vg_caption", "aok_vqa"}
    assert "annotations" in datasets.vg_caption.build_info


def test_the_type_of_a_data_set_in_the_options_brings_its_defaults(config, monkeypatch, tmp_path):
    from lavis.common.registry import registry

    other = tmp_path / "other.yaml"
    other.write_text("datasets: {coco_caption: {data_type: other}}\n")
    builder = registry.get_builder_class("coco_caption")
    monkeypatch.setitem(builder.DATASET_CONFIG_DICT, "other", str(other))
    assert config("datasets.coco_caption.type=other").datasets_cfg.coco_caption.data_type == "other"
    assert config().datasets_cfg.coco_caption.data_type == "images"

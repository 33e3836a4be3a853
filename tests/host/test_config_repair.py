"""`--options model.model_type=...` chooses the defaults of that type."""

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

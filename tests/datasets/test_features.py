"""Features that were computed before: the same loss as images, and nothing but what the model's encoder made."""

import copy
import logging
import pickle

import pytest
import torch
from omegaconf import OmegaConf

import gitllm_plugin
from gitllm_plugin.datasets.builders.m3it_wds_builder import M3ITWdsBuilder
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.host import launch
from gitllm_plugin.m3it.problems import RowError
from tests.m3it_shards import make_groups, write_shards

MODEL = {
    "arch": "git_llm",
    "model_type": "tiny_opt",
    "image_encoder": "tiny:clip",
    "max_images": 2,
    "dtype": "float32",
    "lora": {"dropout": 0.0},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    gitllm_plugin.register()
    folder = tmp_path_factory.mktemp("features")
    groups = make_groups(folder / "a.jsonl", "a", "train", rows=14, texts_per_image=3)
    groups += make_groups(folder / "b.jsonl", "b", "train", rows=3, seed=1, images_per_row=2)
    write_shards(folder / "shards", groups)
    write_config(folder)
    assert launch.write_features(folder / "run.yaml").startswith("train: 3 of 3 shards encoded")
    return folder


def node(folder, **build_info):
    sizes = {"image_size": 32}
    info = {"shards": str(folder / "shards"), **build_info}
    return {"build_info": info, "vis_processor": {"train": sizes, "eval": sizes}, "texts_per_image": "all"}


def write_config(folder, **build_info):
    run = {"task": "m3it", "runner": "git_llm", "init_lr": 0.01, "max_iters": 3, "max_epoch": 1, "batch_size_train": 2}
    run |= {"output_dir": str(folder / "output"), "device": "cpu", "train_splits": ["train"], "valid_splits": []}
    config = {"model": MODEL, "datasets": {"m3it_wds": node(folder, **build_info)}, "run": run}
    OmegaConf.save(OmegaConf.create(config), folder / "run.yaml")


def stream_of(folder, **build_info):
    return M3ITWdsBuilder(OmegaConf.create(node(folder, **build_info))).build_datasets()["train"]


def batches(stream, count=4):
    items = iter(stream)
    return [stream.collater([next(items), next(items)]) for _ in range(count)]


def build_model(**changes):
    from gitllm_plugin.models.git_llm import GitLLMForLavis

    torch.manual_seed(0)
    return GitLLMForLavis.from_config({**MODEL, "language_model": "tiny:opt", "trainable": "proj+lora", **changes})


def test_the_loss_is_that_of_images_whose_features_were_rounded(folder):
    model = build_model()
    rounded = copy.deepcopy(model)
    encoder = rounded.model.image_encoder
    forward = encoder.forward
    encoder.forward = lambda pixels: forward(pixels).bfloat16().float()
    for with_features, with_pixels in zip(
        batches(stream_of(folder, features=True)), batches(stream_of(folder)), strict=True
    ):
        assert with_features["instance_id"] == with_pixels["instance_id"]
        assert with_features["image"].dtype == torch.bfloat16 and with_features["image"].shape[-3:] == (1, 17, 48)
        loss = model(with_features)["loss"]
        torch.testing.assert_close(loss, rounded(with_pixels)["loss"], atol=1e-6, rtol=0)
        torch.testing.assert_close(loss, model(with_pixels)["loss"], atol=1e-2, rtol=0)
    assert with_features["image"].ndim in (4, 5)


def test_encoding_again_does_nothing_until_a_file_is_gone(folder):
    assert launch.write_features(folder / "run.yaml").startswith("train: 0 of 3 shards encoded")
    (folder / "shards" / "b" / "train" / "000000.features.json").unlink()
    with pytest.raises(DataError, match=r"b/train/000000.tar has no features in .*run `gitllm m3it features`"):
        stream_of(folder, features=True)
    assert launch.write_features(folder / "run.yaml").startswith("train: 1 of 3 shards encoded")


def test_training_reads_features_and_encodes_no_image(folder, monkeypatch, caplog):
    from gitllm_plugin.modeling.vision import ImageEncoder

    write_config(folder, features=str(folder / "shards"))
    monkeypatch.setattr(ImageEncoder, "num_tokens", lambda *args: pytest.fail("an image was encoded"))
    with caplog.at_level(logging.INFO):
        launch.train(folder / "run.yaml")
    assert list((folder / "output").rglob("checkpoint_latest.pth"))
    write_config(folder)


def test_workers_open_files_for_themselves(folder):
    stream = stream_of(folder, features=True)
    first = next(iter(stream))
    again = next(iter(pickle.loads(pickle.dumps(stream))))
    assert torch.equal(first["image"], again["image"]) and first["image_encoder"] == again["image_encoder"]


def test_features_of_another_encoder_processor_or_for_a_trained_encoder_are_refused(folder):
    (batch,) = batches(stream_of(folder, features=True), 1)
    with pytest.raises(ConfigError, match="features that another image encoder .* made than this model's"):
        build_model(vision_layer=-2)(batch)
    with pytest.raises(ConfigError, match="features .* computed before, but the image encoder is trained"):
        build_model(trainable="proj+vit")(batch)
    other = node(folder, features=True)
    other["vis_processor"]["train"] = {"image_size": 32, "normalization": "siglip"}
    with pytest.raises(DataError, match="were made with the image processor .* but this run has"):
        M3ITWdsBuilder(OmegaConf.create(other)).build_datasets()
    other["vis_processor"]["train"] = {"image_size": 32, "horizontal_flip": True}
    with pytest.raises(ConfigError, match="features of images are made once, so the image processor has to be"):
        M3ITWdsBuilder(OmegaConf.create(other)).build_datasets()


def test_features_that_break_off_are_named(folder):
    stream = stream_of(folder, features=True)
    path = folder / "shards" / "a" / "train" / "000000.features"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 4])
    try:
        with pytest.raises(RowError, match="its features end before they should"):
            batches(stream, 8)
        with pytest.raises(DataError, match=r"000000.features is missing or has not [\d,]+ bytes"):
            stream_of(folder, features=True)
    finally:
        path.write_bytes(whole)

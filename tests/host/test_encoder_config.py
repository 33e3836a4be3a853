"""Size and normalization that a configuration does not say are the image encoder's."""

import json
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from transformers import CLIPVisionConfig, SiglipVisionConfig

import gitllm_plugin

gitllm_plugin.register()

from gitllm_plugin.host import launch  # noqa: E402
from gitllm_plugin.host.encoder_config import fill_from_encoder, take_sizes_of_encoder  # noqa: E402
from gitllm_plugin.processors.image_transform import NORMALIZATIONS  # noqa: E402
from tests.small_run import write_small_run  # noqa: E402
from tests.timm_folder import write_timm  # noqa: E402

CLIP = dict(zip(("mean", "std"), map(list, NORMALIZATIONS["clip"]), strict=True))
HALVES = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


def processor(kind, side, mean, std):
    size = {"size": {"height": side, "width": side}, "resample": 3, "rescale_factor": 1 / 255}
    steps = {"do_resize": True, "do_rescale": True, "do_normalize": True}
    return {"image_processor_type": kind, **size, **steps, "image_mean": mean, "image_std": std}


def siglip(folder):
    SiglipVisionConfig(image_size=384).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor("SiglipImageProcessor", 384, **HALVES)))
    return str(folder)


def usual(folder):
    CLIPVisionConfig(image_size=224).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor("ViTImageProcessor", 224, **CLIP)))
    return str(folder)


def without_processor(folder):
    CLIPVisionConfig(image_size=336).save_pretrained(folder)
    return str(folder)


def timm(folder):
    published = {"input_size": [3, 160, 160], "mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3], "crop_pct": 0.9}
    return write_timm(folder, {**published, "interpolation": "bicubic", "crop_mode": "center"})


ENCODERS = {
    "SigLIP": (siglip, {"image_size": 384, **HALVES}),
    "as usual": (usual, {}),
    "only its size": (without_processor, {"image_size": 336}),
    "timm": (timm, {"image_size": 160, "mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3]}),
    "tiny": (lambda folder: "tiny:vit", {"image_size": 32}),
    "any size": (lambda folder: "tiny:timm", {}),
    "not there": (lambda folder: str(folder / "nothing"), {}),
}


def filled(encoder, node, **model):
    config = OmegaConf.create(
        {
            "model": {"arch": "git_llm", "image_encoder": encoder, **model},
            "datasets": {"mine": {"vis_processor": {"eval": {"name": "git_llm_image_eval", **node}}}},
        }
    )
    fill_from_encoder(config)
    return {key: value for key, value in config.datasets.mine.vis_processor.eval.items() if key != "name"}


@pytest.mark.parametrize("name", ENCODERS)
def test_what_is_not_said_is_the_encoders(name, tmp_path):
    write, expected = ENCODERS[name]
    assert filled(write(tmp_path), {}) == expected


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ({"image_size": 96}, {"image_size": 96, **HALVES}),
        ({"normalization": "imagenet"}, {"image_size": 384, "normalization": "imagenet"}),
        (
            {"mean": [0.1] * 3, "std": [0.9] * 3, "image_size": None},
            {"image_size": 384, "mean": [0.1] * 3, "std": [0.9] * 3},
        ),
        ({"encoder": "another"}, {"encoder": "another"}),
        ({"name": "blip_image_eval"}, {}),
        ({"name": "git_llm_video_eval", "num_frames": 3}, {"num_frames": 3, "image_size": 384, **HALVES}),
    ],
    ids=["size", "normalization", "numbers", "encoder", "of LAVIS", "video"],
)
def test_what_is_said_stays(node, expected, tmp_path):
    assert filled(siglip(tmp_path), node) == expected


def test_other_models_are_left_alone(tmp_path):
    assert filled(siglip(tmp_path), {}, arch="blip_caption") == {}
    assert filled(siglip(tmp_path), {}, folder="exported") == {}


@pytest.mark.parametrize(("file", "size"), [("mine.yaml", 32), ("config.yaml", None)])
def test_a_runs_own_configuration_means_what_was_usual_then(file, size, tmp_path):
    from lavis.tasks.base_task import BaseTask

    config = OmegaConf.create({"model": {"arch": "git_llm", "image_encoder": "tiny:clip"}, "datasets": {}})
    config.datasets.mine = {"vis_processor": {"train": {"name": "git_llm_image_train"}}}
    (tmp_path / "checkpoint_latest.pth").write_bytes(b"")
    cfg = SimpleNamespace(config=config, args=SimpleNamespace(cfg_path=str(tmp_path / file)), datasets_cfg={"": 0})
    take_sizes_of_encoder()
    with pytest.raises(Exception):  # noqa: B017 - LAVIS finds no builder; the encoder was asked before
        BaseTask().build_datasets(cfg)
    assert config.datasets.mine.vis_processor.train.get("image_size") == size


def test_a_run_says_nothing_of_sizes(tmp_path):
    path = write_small_run(tmp_path, max_epoch=1)
    config = OmegaConf.load(path)
    del config.datasets.m3it.vis_processor
    OmegaConf.save(config, path)
    runner = launch.train(path)
    written = OmegaConf.load(runner.output_dir / "config.yaml").datasets.m3it.vis_processor
    assert written.train.image_size == written.eval.image_size == 32

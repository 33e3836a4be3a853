"""Size, mean, std and resampling of an image encoder, read from its own files."""

import json

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from transformers import (
    BitImageProcessor,
    CLIPImageProcessor,
    SiglipImageProcessor,
    ViTImageProcessor,
)

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.processors.git_llm_image import GitLLMImageEvalProcessor, GitLLMImageTrainProcessor
from gitllm_plugin.processors.image_transform import NORMALIZATIONS
from tests.photos import open_photo
from tests.timm_folder import write_timm

TIMM = {
    "input_size": [3, 64, 64],
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
}
DINO = {"size": {"shortest_edge": 64}, "crop_size": {"height": 56, "width": 56}}


def make(processor_class=GitLLMImageEvalProcessor, **cfg):
    return processor_class.from_config(OmegaConf.create(cfg))


@pytest.mark.parametrize(
    "own",
    [
        CLIPImageProcessor(),
        CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
        SiglipImageProcessor(size={"height": 64, "width": 64}),
        ViTImageProcessor(),
        BitImageProcessor(**DINO),
    ],
    ids=["clip", "clip336", "siglip", "vit", "dinov2"],
)
def test_an_encoders_own_processor_gives_the_same_pixels(own, tmp_path):
    own.save_pretrained(tmp_path)
    processor = make(encoder=str(tmp_path))
    photo = open_photo(320, 240)
    expected = own(photo, return_tensors="pt")["pixel_values"][0]
    difference = (processor(photo) - expected).abs().amax((1, 2))
    assert (difference * torch.tensor(own.image_std) < 1.001 / 255).all()


def test_backbones_of_timm(tmp_path):
    from timm.data import create_transform

    processor = make(encoder=write_timm(tmp_path, TIMM))
    photo = open_photo(320, 240)
    expected = create_transform((3, 64, 64), interpolation="bicubic", mean=(0.5,) * 3, std=(0.25,) * 3, crop_pct=0.875)
    assert torch.allclose(processor(photo), expected(photo), atol=1.001 / 255 / 0.25)


def test_what_is_given_beside_it_counts(tmp_path):
    BitImageProcessor(**DINO).save_pretrained(tmp_path)
    own = make(encoder=str(tmp_path)).transform
    assert (own.image_size, own.resize, own.shortest_edge, own.least_side) == (56, "shortest_edge", 64, 64)
    other = make(encoder=str(tmp_path), resize="squash", normalization="siglip").transform
    assert (other.image_size, other.resize, other.shortest_edge) == (56, "squash", None)
    assert (other.mean, other.std) == NORMALIZATIONS["siglip"]
    larger = make(encoder=str(tmp_path), image_size=112).transform
    assert (larger.image_size, larger.resize, larger.shortest_edge) == (112, "shortest_edge", None)
    random = make(GitLLMImageTrainProcessor, encoder=str(tmp_path), random_resized_crop=[0.5, 1.0])
    assert random(open_photo()).shape == (3, 56, 56)


def test_the_transform_is_written_as_it_was_read(tmp_path):
    BitImageProcessor(**DINO).save_pretrained(tmp_path)
    transform = make(encoder=str(tmp_path)).transform
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(transform.as_preprocessor_config()))
    assert make(encoder=str(tmp_path)).transform == transform


@pytest.mark.parametrize(
    "write, message",
    [
        (lambda folder: str(folder / "nowhere"), "encoder: .*nowhere has no image processor that can be read"),
        (
            lambda folder: write_timm(folder, {**TIMM, "crop_mode": "border"}),
            "crop_mode is border with a crop_pct of 0.875",
        ),
        (
            lambda folder: write_timm(folder, {**TIMM, "input_size": [3, 64, 32]}),
            "input_size is .3, 64, 32., which is no square",
        ),
        (
            lambda folder: ViTImageProcessor(size={"height": 64, "width": 32}).save_pretrained(folder) and str(folder),
            "does something else than resizing to one square size",
        ),
        (
            lambda folder: ViTImageProcessor(resample=0).save_pretrained(folder) and str(folder),
            "does something else than resizing to one square size",
        ),
    ],
    ids=["missing", "border", "oblong timm", "oblong", "nearest"],
)
def test_encoders_that_cannot_be_followed(write, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        make(encoder=write(tmp_path))


def test_a_wrong_resampling():
    with pytest.raises(ConfigError, match="resampling is 'cubic', expected one of bicubic, bilinear, lanczos"):
        make(resampling="cubic")


def test_numpy_is_not_written_through(tmp_path):
    """A picture at its final size is not copied by resizing: what comes out must not share memory with it."""
    picture = np.zeros((224, 224, 3), dtype=np.uint8)
    pixels = make().transform.fit(picture)
    pixels.fill_(9)
    assert not picture.any()

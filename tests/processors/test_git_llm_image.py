"""Image processors: pixel values, and what is said about wrong configurations."""

import numpy as np
import pytest
import torch
from lavis.common.registry import registry
from omegaconf import OmegaConf
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize, functional

from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.processors.git_llm_image import GitLLMImageEvalProcessor, GitLLMImageTrainProcessor
from gitllm_plugin.processors.image_transform import NORMALIZATIONS


def make_picture(width: int = 50, height: int = 30) -> Image.Image:
    """A smooth picture, on which different ways to resize agree but for rounding."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, (x + y) / 2], axis=-1).astype(np.uint8))


def make_processor(**cfg) -> GitLLMImageEvalProcessor:
    return GitLLMImageEvalProcessor.from_config(OmegaConf.create(cfg))


def test_registered_names():
    assert registry.get_processor_class("git_llm_image_eval") is GitLLMImageEvalProcessor
    assert registry.get_processor_class("git_llm_image_train") is GitLLMImageTrainProcessor


@pytest.mark.parametrize("processor_class", [GitLLMImageEvalProcessor, GitLLMImageTrainProcessor])
def test_defaults_without_configuration(processor_class):
    pixels = processor_class.from_config(None)(make_picture())
    assert (pixels.shape, pixels.dtype) == ((3, 224, 224), torch.float32)
    assert pixels.is_contiguous()


@pytest.mark.parametrize("normalization", sorted(NORMALIZATIONS))
def test_normalization_of_black_and_white(normalization):
    processor = make_processor(image_size=4, normalization=normalization)
    mean, std = (torch.tensor(values) for values in NORMALIZATIONS[normalization])
    for color, level in (("black", 0.0), ("white", 1.0)):
        pixels = processor(Image.new("RGB", (9, 5), color))
        assert torch.allclose(pixels[:, 2, 2], (level - mean) / std, atol=1e-6)


def test_efficientnet_lite_is_127_by_128():
    pixels = make_processor(image_size=1, normalization="efficientnet_lite")(Image.new("RGB", (1, 1), (0, 127, 255)))
    assert torch.allclose(pixels.flatten(), torch.tensor([-127 / 128, 0.0, 1.0]), atol=1e-6)


def test_explicit_mean_and_std():
    processor = make_processor(image_size=1, mean=[0, 0, 0], std=[1, 0.5, 0.25])
    assert processor(Image.new("RGB", (1, 1), "white")).flatten().tolist() == [1.0, 2.0, 4.0]


def test_squash_equals_bicubic_resize_of_torchvision():
    image = make_picture()
    expected = functional.to_tensor(Resize((16, 16), InterpolationMode.BICUBIC)(image))
    pixels = make_processor(image_size=16, mean=[0, 0, 0], std=[1, 1, 1])(image)
    assert torch.allclose(pixels, expected, atol=1.001 / 255)


def test_shortest_edge_agrees_with_resize_and_center_crop():
    image = make_picture(48, 32)
    expected = functional.to_tensor(Compose([Resize(16, InterpolationMode.BICUBIC), CenterCrop(16)])(image))
    pixels = make_processor(image_size=16, resize="shortest_edge", mean=[0, 0, 0], std=[1, 1, 1])(image)
    assert torch.allclose(pixels, expected, atol=1.001 / 255)


def test_random_resized_crop_is_random_within_the_image_and_seeded():
    processor = GitLLMImageTrainProcessor.from_config(
        OmegaConf.create({"image_size": 8, "random_resized_crop": [0.3, 0.6], "mean": [0] * 3, "std": [1] * 3})
    )
    image = make_picture()
    torch.manual_seed(0)
    first, second = processor(image), processor(image)
    torch.manual_seed(0)
    assert torch.equal(first, processor(image))
    assert not torch.equal(first, second)
    assert first[0].max() - first[0].min() < 0.95  # red spans the whole width


def test_grey_picture():
    assert make_processor(image_size=4)(Image.new("L", (5, 5))).shape == (3, 4, 4)


@pytest.mark.parametrize(
    "item, message",
    [
        ("photo.jpg", "photo.jpg: cannot be read"),
        (np.zeros((5, 4, 6)), r"an array of float64 \[5, 4, 6\] is no picture; give a path"),
        (None, "NoneType is no picture; give a path, the bytes of an image file"),
    ],
)
def test_refuses_what_is_no_picture(item, message):
    with pytest.raises(DataError, match=message):
        make_processor()(item)


@pytest.mark.parametrize(
    "cfg, message",
    [
        ({"image_sise": 3}, r"unknown key 'image_sise' \(did you mean 'image_size'\?\)"),
        ({"random_resized_crop": [0.5, 1.0]}, "unknown key 'random_resized_crop'"),
        ({"image_size": 0}, "image_size is 0, expected a number of pixels"),
        ({"image_size": "large"}, "image_size is 'large'"),
        ({"normalization": "clop"}, "normalization is 'clop', expected one of clip, siglip, imagenet"),
        ({"resize": "fit"}, "resize is 'fit', expected one of squash, shortest_edge"),
        ({"mean": [0, 0, 0]}, r"std is \[\], expected three numbers each"),
        ({"mean": [0, 0, 0], "std": [1, 1, 0]}, "std above 0"),
        (
            {"mean": [0, 0, 0], "std": [1, 1, 1], "normalization": "clip"},
            "normalization is given together with",
        ),
    ],
)
def test_wrong_configuration(cfg, message):
    with pytest.raises(ConfigError, match=message):
        make_processor(**cfg)


@pytest.mark.parametrize("scale", [0.5, [0.5], [0.8, 0.5], [0, 1], "all"])
def test_wrong_crop(scale):
    with pytest.raises(ConfigError, match="expected the least and greatest part of the area"):
        GitLLMImageTrainProcessor.from_config(OmegaConf.create({"random_resized_crop": scale}))


def test_crop_and_another_resize_exclude_each_other():
    cfg = {"random_resized_crop": [0.5, 1.0], "resize": "shortest_edge"}
    with pytest.raises(ConfigError, match="remove resize or random_resized_crop"):
        GitLLMImageTrainProcessor.from_config(OmegaConf.create(cfg))

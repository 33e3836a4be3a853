"""An encoder's own image processor is followed to the pixel in all that it says, or refused in words."""

import json
import random

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.processors import image_transform
from gitllm_plugin.processors.image_transform import NORMALIZATIONS, ImageTransform
from gitllm_plugin.processors.transform_config import transform_of_encoder
from tests.photos import open_photo
from tests.timm_folder import write_timm

PLAIN = {
    "do_resize": True,
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
}
TIMM = {
    "input_size": [3, 32, 32],
    "interpolation": "bicubic",
    "crop_pct": 0.9,
    "crop_mode": "center",
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.4],
}
CUT = {"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}}
KINDS = {
    "CLIPImageProcessor": CUT,
    "SiglipImageProcessor": {"size": {"height": 32, "width": 32}},
    "ViTImageProcessor": {"size": {"height": 32, "width": 32}},
    "BitImageProcessor": CUT,
    "ConvNextImageProcessor": {"size": {"shortest_edge": 32}, "crop_pct": 0.875},
}
SIZES = [(64, 48), (33, 47), (20, 9), (32, 32), (200, 41)]
GREY_LEVELS = 2.001  # Pillow, which timm resizes with, rounds twice


def write(folder, kind: str, **changes) -> str:
    config = {"image_processor_type": kind, **PLAIN, **KINDS[kind], **changes}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return str(folder)


def check_same_pixels(folder: str) -> None:
    """For pictures of many sizes, both upright and lying."""
    own, transform = AutoImageProcessor.from_pretrained(folder), transform_of_encoder(folder)
    for size in SIZES:
        for width, height in (size, size[::-1]):
            photo = open_photo(width, height)
            wanted = own(photo, return_tensors="pt")["pixel_values"][0].float()
            pixels = transform(photo)
            assert pixels.shape == wanted.shape, (width, height)
            levels = ((pixels - wanted).abs().amax((1, 2)) * torch.tensor(transform.std) * 255).max()
            assert levels < GREY_LEVELS, (width, height)


FOLLOWED = {
    "as it is": {},
    "no normalising": {"do_normalize": False},
    "another factor": {"rescale_factor": 1 / 127.5},
    "bytes that are normalised": {"do_rescale": False, "image_mean": [127.0] * 3, "image_std": [60.0] * 3},
    "bytes as they are": {"do_rescale": False, "do_normalize": False},
    "bilinear": {"resample": 2},
    "lanczos": {"resample": 1},
    "one mean": {"image_mean": [0.1, 0.1, 0.1], "image_std": [1.0, 1.0, 1.0]},
    "no conversion": {"do_convert_rgb": False},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FOLLOWED)
def test_followed_to_the_pixel(kind, name, tmp_path):
    check_same_pixels(write(tmp_path, kind, **FOLLOWED[name]))


@pytest.mark.parametrize(
    "kind, changes",
    [
        ("CLIPImageProcessor", {"size": 40, "crop_size": 32}),
        ("ViTImageProcessor", {"size": 32}),
        ("CLIPImageProcessor", {"size": {"height": 32, "width": 32}, "do_center_crop": False}),
        ("CLIPImageProcessor", {"size": {"height": 32, "width": 32}}),
        ("BitImageProcessor", {"size": {"shortest_edge": 33}}),
        ("BitImageProcessor", {"size": {"shortest_edge": 32}}),
        ("ConvNextImageProcessor", {"crop_pct": 1.0}),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
        ("SiglipImageProcessor", {"do_pad": True, "pad_size": {"height": 32, "width": 32}}),
    ],
)
def test_sizes_in_every_form(kind, changes, tmp_path):
    check_same_pixels(write(tmp_path, kind, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"crop_pct": 1.0},
        {"crop_pct": 1.0, "crop_mode": "squash"},
        {"interpolation": "bilinear"},
        {"crop_pct": 0.77},
    ],
)
def test_timm(changes, tmp_path):
    check_same_pixels(write_timm(tmp_path, {**TIMM, **changes}))


REFUSED = {
    "no resizing": ("CLIPImageProcessor", {"do_resize": False}, "do_resize is false"),
    "padding": ("CLIPImageProcessor", {"do_pad": True, "pad_size": {"height": 48, "width": 48}}, r"\[3, 48, 48\]"),
    "padding of siglip": ("SiglipImageProcessor", {"do_pad": True, "pad_size": {"height": 40, "width": 33}}, "40, 33"),
    "proportions kept": ("BitImageProcessor", {"do_center_crop": False}, "would keep their proportions"),
    "longest edge": (
        "CLIPImageProcessor",
        {"size": {"shortest_edge": 32, "longest_edge": 64}, "do_center_crop": False},
        "which is no square",
    ),
    "an oblong": ("ViTImageProcessor", {"size": {"height": 32, "width": 48}}, "which is no square"),
    "an oblong crop": ("CLIPImageProcessor", {"crop_size": {"height": 32, "width": 24}}, "which is no square"),
    "a crop larger than the picture": ("CLIPImageProcessor", {"size": {"shortest_edge": 24}}, "would be padded"),
    "a crop of a square": (
        "CLIPImageProcessor",
        {"size": {"height": 40, "width": 40}},
        "out of which crop_size .* is cut",
    ),
    "nearest": ("SiglipImageProcessor", {"resample": 0}, "resizes nearest"),
    "one channel": ("ViTImageProcessor", {"image_mean": [0.5], "image_std": [0.5]}, "not three numbers"),
    "nothing but zeros": ("ViTImageProcessor", {"image_std": [0, 0, 0]}, "not above 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_words(name, tmp_path):
    kind, changes, said = REFUSED[name]
    with pytest.raises(ConfigError, match=f"does something else than .*: .*{said}.*Leave encoder out"):
        transform_of_encoder(write(tmp_path, kind, **changes))


def test_what_no_key_says_is_found_by_trying(tmp_path, monkeypatch):
    """As if a later release of transformers read a key that is not known here."""
    from transformers import CLIPImageProcessor

    monkeypatch.setattr(CLIPImageProcessor, "center_crop", lambda self, image, size, **unused: image[..., -32:, -32:])
    with pytest.raises(ConfigError, match="it makes other pixels, by .* grey levels"):
        transform_of_encoder(write(tmp_path, "CLIPImageProcessor"))


def generated(generator: random.Random) -> tuple[str, dict]:
    """A configuration as somebody might write it."""
    kind = generator.choice(list(KINDS))
    side = generator.choice([16, 24, 31, 32])
    square = {"height": side, "width": side}
    options = {
        "size": [side, square, {"shortest_edge": side}, {"shortest_edge": side + 8}, {"height": side, "width": 20}],
        "crop_size": [side, square, {"height": side, "width": 20}],
        "do_center_crop": [True, False],
        "do_resize": [True, True, True, False],
        "resample": [0, 1, 2, 3, 4, 5],
        "do_rescale": [True, True, False],
        "rescale_factor": [1 / 255, 1 / 127.5, 0.5],
        "do_normalize": [True, False],
        "image_mean": [[0.5] * 3, [0.1, 0.2, 0.3], [0.5], 0.5],
        "image_std": [[0.5] * 3, [0.1, 0.2, 0.3], [0.5], [1, 0, 1]],
        "do_pad": [True, False],
        "pad_size": [square, {"height": side + 8, "width": side + 8}],
        "do_convert_rgb": [True, False],
        "crop_pct": [0.5, 0.9, 1.0],
    }
    names = generator.sample(sorted(options), generator.randrange(5))
    return kind, {name: generator.choice(options[name]) for name in names}


def check_generated(folder, seeds: range) -> int:
    followed = 0
    for seed in seeds:
        kind, changes = generated(random.Random(seed))
        name = write(folder, kind, **changes)
        try:
            transform_of_encoder(name)
        except ConfigError:
            continue
        check_same_pixels(name)
        followed += 1
    return followed


def test_generated_configurations_are_followed_or_refused(tmp_path):
    assert check_generated(tmp_path, range(60)) > 12


@pytest.mark.slow
def test_many_generated_configurations(tmp_path):
    assert check_generated(tmp_path, range(60, 2000)) > 400


@pytest.mark.parametrize("resampling", ["bicubic", "bilinear", "lanczos"])
@pytest.mark.parametrize("size", [(300, 2), (2, 300), (251, 3)])
@pytest.mark.parametrize("round_centre", [False, True])
def test_a_strip_has_the_pixels_of_one_that_was_resized_whole(resampling, size, round_centre, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    transform = ImageTransform(
        33, *NORMALIZATIONS["clip"], "shortest_edge", 40, resampling=resampling, round_centre=round_centre
    )
    whole = transform.fit(noise)
    monkeypatch.setattr(image_transform, "_MOST_RESIZED", 1)
    assert (transform.fit(noise).int() - whole.int()).abs().max() <= GREY_LEVELS


@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000)])
@pytest.mark.parametrize("resize", ["squash", "shortest_edge"])
def test_a_strip_costs_no_gigabytes(size, resize):
    import resource

    picture = np.zeros((*size, 3), np.uint8)
    picture[(slice(9_000, 11_000), slice(None)) if size[1] == 1 else (slice(None), slice(9_000, 11_000))] = 255
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pixels = ImageTransform(224, *NORMALIZATIONS["clip"], resize).fit(picture)
    assert pixels.shape == (3, 224, 224)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB
    assert pixels.max() == 255 and pixels.min() == (255 if resize == "shortest_edge" else 0)


@pytest.mark.parametrize("side", [1, 20_000])
def test_a_strip_of_a_file(side):
    picture = Image.new("L", (side, 20_001 - side), 7)
    assert (ImageTransform(8, (0,) * 3, (1 / 255,) * 3, "shortest_edge")(picture) == 7).all()

"""The fast way from an image file to pixels gives the pixels of Pillow and of Hugging Face's image processors."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from transformers import CLIPImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.m3it.images import decode_image, decode_pixels
from gitllm_plugin.processors.git_llm_image import GitLLMImageEvalProcessor, GitLLMImageTrainProcessor
from tests.m3it_files import encode
from tests.photos import open_photo

GREY_LEVEL = 1.001 / 255


def load(data: bytes, processor_class=GitLLMImageEvalProcessor, seed: int | None = None, **cfg):
    return processor_class.from_config(OmegaConf.create(cfg)).load([data], "x", seed)


SIZES = [(640, 480), (500, 333), (200, 150), (224, 224), (427, 640), (333, 500)]


@pytest.mark.parametrize("resize", ["squash", "shortest_edge"])
@pytest.mark.parametrize("width, height", SIZES)
@pytest.mark.parametrize("backend", [CLIPImageProcessor, CLIPImageProcessorPil])
def test_pixels_of_clips_own_processor_within_a_grey_level(backend, width, height, resize):
    if backend is CLIPImageProcessorPil and height > width and resize == "squash":
        pytest.skip("Pillow 13 resizes tall pictures in another order than Pillow before it, and than torch")
    data = encode(open_photo(width, height), "JPEG", quality=90)
    squash = resize == "squash"
    size = {"height": 224, "width": 224} if squash else {"shortest_edge": 224}
    processor = backend(size=size, crop_size=224, do_center_crop=not squash, do_normalize=False)
    expected = processor(decode_image(data, "x"), return_tensors="pt")["pixel_values"][0]
    pixels = load(data, resize=resize)
    assert (pixels.dtype, pixels.shape, pixels.is_contiguous()) == (torch.uint8, (3, 224, 224), True)
    assert (pixels / 255 - expected).abs().max() < GREY_LEVEL


@pytest.mark.parametrize("resampling", ["bicubic", "bilinear", "lanczos"])
def test_every_resampling_is_pillows(resampling):
    photo = open_photo(640, 480)
    expected = np.array(photo.resize((64, 64), Image.Resampling[resampling.upper()]))
    pixels = load(encode(photo), image_size=64, resampling=resampling)
    assert np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"quality": 30}]
)
def test_jpeg_is_decoded_to_the_same_bits_as_by_pillow(options):
    data = encode(open_photo(), "JPEG", **options)
    assert np.array_equal(decode_pixels(data, "x"), np.array(decode_image(data, "x")))


@pytest.mark.parametrize(
    "mode, file_format", [("L", "JPEG"), ("CMYK", "JPEG"), ("P", "PNG"), ("RGBA", "WEBP"), ("1", "PNG")]
)
def test_other_pictures_too(mode, file_format):
    data = encode(open_photo(64, 48).convert(mode), file_format)
    assert np.array_equal(decode_pixels(data, "x"), np.array(decode_image(data, "x")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(open_photo(64, 48), "JPEG", exif=exif)
    pixels = decode_pixels(data, "x", least_side=8)
    assert np.array_equal(decode_pixels(data, "x"), np.array(decode_image(data, "x")))
    assert (pixels.shape[0] > pixels.shape[1]) == (orientation >= 5)


@pytest.mark.parametrize(
    "before", [b"", b"\xff\xed\x00\x08\xff\xd8\xff\xda\x00\x00"], ids=["first", "behind a thumbnail"]
)
def test_orientation_wherever_it_stands(before):
    """Also where a segment with a picture of its own comes before EXIF, and where XMP says it alone."""
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encode(open_photo(64, 48), "JPEG", exif=exif)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><tiff:Orientation>6</tiff:Orientation></x:xmpmeta>'
    for data in (turned, encode(open_photo(64, 48), "JPEG", xmp=xmp)):
        assert decode_pixels(data[:2] + before + data[2:], "x").shape == (64, 48, 3)


def test_exif_that_cannot_be_read_asks_for_nothing():
    data = encode(open_photo(64, 48), "JPEG", exif=b"Exif\0\0nonsense")
    assert decode_pixels(data, "x").shape == (48, 64, 3)
    assert decode_image(data, "x").size == (64, 48)


def test_odd_jpeg_that_pillow_takes_is_taken():
    data = encode(open_photo(64, 48), "JPEG")
    end = data.rindex(b"\xff\xd9")
    odd = data[:end] + b"\x00\x00\x00" + data[end:]
    assert np.array_equal(decode_pixels(odd, "x"), np.array(decode_image(odd, "x")))


def test_scaled_decoding_is_close_and_never_too_small():
    data = encode(open_photo(1200, 900), "JPEG", quality=90)
    assert decode_pixels(data, "x", least_side=224).shape == (225, 300, 3)
    assert decode_pixels(data, "x", least_side=2000).shape == (900, 1200, 3)
    exact, scaled = load(data).int(), load(data, scaled_decode=True).int()
    difference = (exact - scaled).abs().float()
    assert 0 < difference.mean() < 2


def test_random_crops_of_scaled_pictures_stay_sharp():
    cfg = {"image_size": 100, "random_resized_crop": [0.25, 1.0], "scaled_decode": True}
    processor = GitLLMImageTrainProcessor.from_config(OmegaConf.create(cfg))
    assert processor.transform.least_side == 200


def test_a_seed_decides_what_is_random_and_leaves_the_generator_alone():
    data = encode(open_photo(), "JPEG")
    cfg = {"random_resized_crop": [0.2, 0.5], "horizontal_flip": True, "image_size": 32}
    torch.manual_seed(0)
    before = torch.get_rng_state()
    crops = [load(data, GitLLMImageTrainProcessor, seed, **cfg) for seed in (1, 2, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(crops[0], crops[2])
    assert not torch.equal(crops[0], crops[1])


def test_horizontal_flip_mirrors_every_second_picture():
    data = encode(open_photo(), "JPEG")
    plain = load(data, image_size=16)
    seen = [load(data, GitLLMImageTrainProcessor, seed, image_size=16, horizontal_flip=True) for seed in range(40)]
    mirrored = sum(torch.equal(pixels, plain.flip(-1)) for pixels in seen)
    assert mirrored + sum(torch.equal(pixels, plain) for pixels in seen) == 40
    assert 8 < mirrored < 32


def test_normalising_uint8_gives_what_the_processor_gives():
    photo = open_photo()
    processor = GitLLMImageEvalProcessor.from_config(None)
    pixels = processor.load([encode(photo)] * 2, "x")
    assert pixels.shape == (2, 3, 224, 224)
    assert torch.equal(processor.transform.normalize(pixels)[1], processor(photo))


@pytest.mark.parametrize("flip", ["yes", 0.5])
def test_wrong_flip(flip):
    with pytest.raises(ConfigError, match="horizontal_flip is .*, expected true or false"):
        GitLLMImageTrainProcessor.from_config(OmegaConf.create({"horizontal_flip": flip}))

"""Pictures in tiles: grids and pixels are those of transformers' InternVL; what is flipped, kept and refused."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import GotOcr2ImageProcessor
from transformers.image_utils import SizeDict
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.processors.git_llm_image import GitLLMImageEvalProcessor, GitLLMImageTrainProcessor
from gitllm_plugin.processors.git_llm_video import GitLLMVideoEvalProcessor
from gitllm_plugin.processors.image_transform import ImageTransform
from gitllm_plugin.processors.tiles import best_grid

GREY = {"mean": [0, 0, 0], "std": [1, 1, 1]}
SHAPES = [(64, 64), (40, 200), (200, 40), (97, 61), (333, 500), (31, 30), (1, 700), (640, 480)]


def picture(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([127 + 100 * np.sin(x / 9), 127 + 100 * np.cos(y / 7), (x + 2 * y) % 256], -1).astype(np.uint8)


def transform(**settings) -> ImageTransform:
    return ImageTransform(32, (0.0,) * 3, (1.0,) * 3, **{"max_tiles": 6, **settings})


def encoded(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(array).save(content, format="PNG")
    return content.getvalue()


@pytest.mark.parametrize("max_tiles", [1, 2, 4, 6, 12])
def test_grids_are_those_of_internvl(max_tiles):
    sizes = [*SHAPES, *np.random.default_rng(0).integers(1, 900, (300, 2)).tolist()]
    for height, width in sizes:
        columns, rows = get_optimal_tiled_canvas((height, width), (32, 32), 1, max_tiles)
        assert best_grid(height, width, 32, max_tiles) == (rows, columns), (height, width)


@pytest.mark.parametrize("thumbnail", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_tiles_are_those_of_internvl(shape, thumbnail):
    array = picture(*shape)
    wanted = GotOcr2ImageProcessor(
        size={"height": 32, "width": 32}, min_patches=1, max_patches=6
    ).crop_image_to_patches(
        torch.from_numpy(array).permute(2, 0, 1)[None],
        1,
        6,
        thumbnail,
        patch_size=SizeDict(height=32, width=32),
        resample=3,
    )[0]
    found, places = transform(thumbnail=thumbnail).tiles(array)
    assert found.shape == wanted.shape and found.dtype == torch.uint8 and found.is_contiguous()
    assert (found.int() - wanted.int()).abs().max() <= 1
    rows, columns = best_grid(*shape, 32, 6)
    grid = [[row, column] for row in range(1, rows + 1) for column in range(1, columns + 1)]
    whole = [[0, 0]]
    assert places.tolist() == (whole if rows * columns == 1 else grid + whole * thumbnail)


def test_the_picture_is_flipped_as_a_whole():
    array = picture(60, 200)
    flipping = transform(horizontal_flip=True)
    plain, mirrored = transform().tiles(array)[0], transform().tiles(array[:, ::-1].copy())[0]
    assert not torch.equal(plain, mirrored)
    seen = set()
    for seed in range(8):
        torch.manual_seed(seed)
        found = flipping.tiles(array)[0]
        assert torch.equal(found, plain) or torch.equal(found, mirrored)
        seen.add(torch.equal(found, plain))
    assert seen == {True, False}


def test_a_part_that_is_cut_out_at_random_has_its_own_grid():
    cropping, counts = transform(crop_scale=(0.1, 1.0)), set()
    for seed in range(12):
        torch.manual_seed(seed)
        counts.add(len(cropping.tiles(picture(300, 300))[0]))
    assert len(counts) > 1


def test_several_pictures_stand_behind_each_other():
    processor = GitLLMImageEvalProcessor.from_config({"image_size": 32, "max_tiles": 4, **GREY})
    wide, small = picture(32, 64), picture(20, 20)
    pixels, places = processor.load_tiles([encoded(wide), encoded(small)], "here")
    assert places.tolist() == [[0, 1, 1], [0, 1, 2], [0, 0, 0], [1, 0, 0]]
    assert torch.equal(
        pixels[:2], torch.from_numpy(wide).permute(2, 0, 1).unflatten(2, (2, 32)).transpose(0, 2).transpose(1, 2)
    )
    floats, same = processor.transform.images([Image.fromarray(wide), Image.fromarray(small)])
    assert torch.equal(same, places) and torch.allclose(floats, pixels / 255)


def test_smaller_decoding_loses_nothing_of_the_tiles():
    array, settings = picture(2000, 3000), {"image_size": 32, "max_tiles": 6}
    content = io.BytesIO()
    Image.fromarray(array).save(content, format="JPEG", quality=95)
    fast, exact = (
        GitLLMImageEvalProcessor.from_config({**settings, "scaled_decode": scaled}).load_tiles([content.getvalue()], "")
        for scaled in (True, False)
    )
    assert torch.equal(fast[1], exact[1])
    assert (fast[0].float() - exact[0].float()).abs().mean() < 4


def test_pixels_without_tiles_are_known_by_the_words_that_they_were():
    assert "tiles" not in repr(transform(max_tiles=1)) and "thumbnail" not in repr(transform(max_tiles=1))
    assert "max_tiles=6, thumbnail=False" in repr(transform(thumbnail=False))


@pytest.mark.parametrize("processor", [GitLLMImageEvalProcessor, GitLLMImageTrainProcessor])
@pytest.mark.parametrize(
    ("said", "refused"),
    [
        ({"max_tiles": 0}, "max_tiles is 0"),
        ({"max_tiles": 65}, "1 to 64 tiles"),
        ({"max_tiles": "all"}, "max_tiles is 'all'"),
        ({"max_tiles": 4, "thumbnail": "small"}, "thumbnail is 'small'"),
        ({"max_tiles": 4, "resize": "shortest_edge"}, "shows the whole picture"),
    ],
)
def test_what_cannot_be_is_told(processor, said, refused):
    with pytest.raises(ConfigError, match=refused):
        processor.from_config(said)


def test_videos_and_data_sets_of_lavis_have_no_tiles():
    with pytest.raises(ConfigError, match="frames of videos are one image each"):
        GitLLMVideoEvalProcessor.from_config({"max_tiles": 4})
    with pytest.raises(ConfigError, match="m3it_instruct, m3it_wds"):
        GitLLMImageEvalProcessor.from_config({"max_tiles": 4})(Image.new("RGB", (9, 9)))

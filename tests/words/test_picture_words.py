"""Patches of a picture: which token is which part, their words, and what is written."""

import csv
import json

import pytest
import torch
from PIL import Image

from gitllm_plugin.modeling import GitLLM
from gitllm_plugin.modeling.tiny import IMAGE_ENCODERS, tiny_image_encoder, tiny_language_model, tiny_tokenizer
from gitllm_plugin.words.draw import words_figure
from gitllm_plugin.words.picture import picture_words, write_csv, write_json
from gitllm_plugin.words.vectors import patch_vectors
from gitllm_plugin.words.vocabulary import Vocabulary, read_vocabulary

PREFIX = {"clip": 1, "siglip": 0, "siglip2": 0, "dinov2": 1, "dinov2_with_registers": 5, "vit": 1, "git": 1, "timm": 0}


def tiny_model(kind, max_images=1):
    return GitLLM(tiny_image_encoder(kind), tiny_language_model("llama"), max_images=max_images).eval()


@pytest.mark.parametrize("kind", IMAGE_ENCODERS)
def test_a_change_in_one_place_is_seen_in_that_patch(kind):
    """CLS and registers are left out, and patches are where they are in the picture."""
    model = tiny_model(kind)
    size, patch, side = (96, 32, 3) if kind == "timm" else (32, 8, 4)
    torch.manual_seed(0)
    if kind == "timm":  # with random weights it shrinks what it sees to 1e-13, which the projection's bias drowns
        model.projection[0].bias.data.zero_()
        model.projection[0].weight.data *= 1e12
    pixels = torch.rand(1, 3, size, size)
    changed = pixels.clone()
    changed[..., 2 * patch : 3 * patch, patch : 2 * patch] = 2
    before, after = patch_vectors(model, pixels), patch_vectors(model, changed)
    assert before.shape == (1, 1, side, side, 64)
    assert model.image_encoder.num_tokens(size, size) == side * side + PREFIX[kind]
    moved = (after - before).norm(dim=-1)[0, 0]
    assert divmod(int(moved.argmax()), side) == (2, 1)


def test_a_grid_need_not_be_square():
    model = tiny_model("siglip2")
    assert patch_vectors(model, torch.rand(1, 3, 16, 64)).shape == (1, 1, 2, 8, 64)
    model = tiny_model("timm")
    assert patch_vectors(model, torch.rand(1, 3, 64, 128)).shape == (1, 1, 2, 4, 64)


def test_the_transformers_of_timm_have_a_grid_too():
    from transformers import TimmWrapperConfig

    from gitllm_plugin.modeling.vision import ImageEncoder

    config = TimmWrapperConfig(architecture="test_vit", do_pooling=False)
    encoder = ImageEncoder.from_config(config)
    assert encoder.grid_shape(160, 160) == (10, 10)
    assert encoder.num_tokens(160, 160) == 101


def test_frames_have_a_grid_each():
    assert patch_vectors(tiny_model("clip", max_images=3), torch.rand(2, 3, 3, 32, 32)).shape == (2, 3, 4, 4, 64)


@pytest.fixture
def words():
    vocabulary = Vocabulary([" red", " Blue", "x$y"], torch.eye(3) * torch.tensor([1.0, 1.0, 5.0]), 0)
    vectors = torch.tensor([[[2.0, 0, 0], [2, 1, 0]], [[0, 1, 0], [0.9, 0, 0.8]], [[1, 0, 0], [0, 0, 1]]])
    return picture_words(vectors, vocabulary, k=2)


def test_words_of_patches_and_their_counts(words):
    assert words.grid == (3, 2)
    assert [entry.token for entry in words.nearest("cosine")] == [" red", " red", " Blue", " red", " red", "x$y"]
    assert [entry.token for entry in words.nearest("dot")] == [" red", " red", " Blue", "x$y", " red", "x$y"]
    assert words.counts("cosine") == [(" red", 4), (" Blue", 1), ("x$y", 1)]
    second = next(e for e in words.entries if (e.measure, e.row, e.column, e.rank) == ("dot", 1, 1, 2))
    assert (second.token, second.score) == (" red", 0.9)


def test_what_is_written(words, tmp_path):
    write_csv(words, tmp_path / "words.csv")
    with open(tmp_path / "words.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 2 * 2 * 2
    assert rows[0] == {"row": "0", "column": "0", "measure": "cosine", "rank": "1", "token": " red", "score": "1.0"}
    write_json(words, tmp_path / "words.json")
    content = json.loads((tmp_path / "words.json").read_text(encoding="utf-8"))
    assert content["grid"] == [3, 2] and content["counts"]["dot"] == {" red": 3, "x$y": 2, " Blue": 1}
    assert len(content["patches"]) == len(rows)


def test_the_figure_has_each_word_at_its_patch_and_colours_the_frequent(words, tmp_path):
    figure = words_figure(Image.new("RGB", (40, 60), "teal"), words, ("cosine", "dot"))
    assert [axis.get_title() for axis in figure.axes] == ["by cosine similarity", "by dot product"]
    texts = {text.get_position(): text for text in figure.axes[0].texts}
    assert texts[0.5, 1.5].get_text() == "Blue" and texts[1.5, 2.5].get_text() == "x$y"
    assert texts[0.5, 0.5].get_bbox_patch().get_facecolor() == texts[0.5, 2.5].get_bbox_patch().get_facecolor()
    assert texts[0.5, 1.5].get_bbox_patch().get_facecolor()[:3] == (1, 1, 1)
    figure.savefig(tmp_path / "words.png")
    assert Image.open(tmp_path / "words.png").size == (1040, 560)


def test_a_vector_that_is_a_word_is_found():
    decoder, tokenizer = tiny_language_model("opt"), tiny_tokenizer()
    vocabulary = read_vocabulary(decoder, tokenizer)
    red = vocabulary.texts.index(" red")
    found = picture_words(vocabulary.vectors[red][None, None] * 3, vocabulary, 1)
    assert found.nearest("cosine")[0].token == " red"
    assert found.nearest("cosine")[0].score == pytest.approx(1)

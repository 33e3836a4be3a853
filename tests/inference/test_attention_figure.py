"""The attention of an answer, token by token, and its figure."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from gitllm_plugin.inference.attention import answer_attention, attention_figure
from gitllm_plugin.inference.pipeline import Decoding, Pipeline
from tests.tiny_folder import write_tiny_folder

PICTURE = Image.linear_gradient("L").convert("RGB")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = write_tiny_folder(tmp_path_factory.mktemp("model") / "tiny", max_images=2)
    return Pipeline.from_pretrained(folder, dtype="float32")


def test_maps_are_those_of_the_positions_that_predict_the_answer(pipeline):
    attention = answer_attention(pipeline, [PICTURE, PICTURE], "what color?", "a red circle")
    assert "".join(attention.tokens) == " a red circle"
    assert attention.maps.shape == (len(attention.tokens), 2, 4, 4)
    tokenizer = pipeline.text_encoder.tokenizer
    prompt = tokenizer(pipeline.prompt("what color?")).input_ids
    answer = tokenizer(" a red circle", add_special_tokens=False).input_ids
    ids = torch.tensor([prompt + answer + [tokenizer.eos_token_id]])
    weights = pipeline.model.attention_to_image(ids, pipeline.pixels([PICTURE, PICTURE])).mean(0)
    first = weights[len(prompt) - 1]
    torch.testing.assert_close(attention.maps[0, 0].flatten(), first[1:17])  # behind CLS
    torch.testing.assert_close(attention.maps[0, 1].flatten(), first[18:])


def test_the_figure_has_a_panel_for_each_token_and_picture(pipeline):
    attention = answer_attention(pipeline, [PICTURE, PICTURE], "", "yes")
    figure = attention_figure([PICTURE, PICTURE], attention)
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    share = float(attention.maps[0].sum())
    assert titles.count(f"whole answer: {float(attention.maps.mean(0).sum()):.0%}") == 2
    assert f"{attention.tokens[0].strip()}: {share:.0%}" in titles
    assert titles.count("picture") == 2 and len(titles) == 2 * (2 + len(attention.tokens))


def test_all_panels_have_one_scale_and_hide_no_picture(pipeline):
    for answer in ("yes", "no it is not", "a red one"):
        attention = answer_attention(pipeline, [PICTURE], "", answer)
        figure = attention_figure([PICTURE], attention)
        drawn = [image for axis in figure.axes for image in axis.get_images() if image.get_alpha() is not None]
        assert len(drawn) == 1 + min(len(attention.tokens), 7)
        most = max(float(attention.maps.max()), float(attention.maps.mean(0).max()))
        assert all(image.get_clim() == (0.0, pytest.approx(most)) for image in drawn)
        assert all(image.get_alpha().max() <= 0.6 for image in drawn)
        assert any(axis.get_ylabel() == "attention to a patch" for axis in figure.axes)


def test_reading_attention_does_not_disturb_other_threads(pipeline):
    """It changes the attention of the one model that all threads share."""

    def answer(_):
        return pipeline.answer(PICTURE, "what color?", decoding=Decoding(max_new_tokens=6))

    def maps(_):
        return answer_attention(pipeline, [PICTURE], "what color?", "a red circle").maps

    text, attention = answer(0), maps(0)
    with ThreadPoolExecutor(4) as threads:
        answers, found = threads.map(answer, range(15)), threads.map(maps, range(15))
        assert set(answers) == {text}
        assert all(torch.equal(each, attention) for each in found)

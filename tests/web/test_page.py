"""The page's events without a browser: what is shown, in which order, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from gitllm_plugin.cli.main import main
from gitllm_plugin.errors import DataError
from gitllm_plugin.inference.asking import Question
from gitllm_plugin.inference.pipeline import Pipeline
from gitllm_plugin.web.answering import read_pictures
from tests.tiny_folder import write_tiny_folder

gr = pytest.importorskip("gradio", reason="the page needs the extra `web`")

SETTINGS = (6, 1, 0.0, 0.9, 1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def pipeline(folder):
    return Pipeline.from_pretrained(folder, dtype="float32")


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.linear_gradient("L").save(path)
    return str(path)


def respond(page, name="respond"):
    """The function behind a button, which is given no earlier turns unless some are."""
    (function,) = {f.fn for f in page.fns.values() if f.fn is not None and f.fn.__name__ == name}
    return lambda *given, turns=(): function(*given, list(turns))


def instruction_box(page):
    (box,) = [block for block in page.blocks.values() if getattr(block, "label", None) == "Instruction"]
    return box


def texts(chat):
    return [message["content"] for message in chat]


def test_the_answer_comes_first_then_the_figures(pipeline, picture, tmp_path):
    from gitllm_plugin.web.page import build_page

    function = respond(build_page(pipeline, "tiny", tmp_path))
    shown = list(function([picture], "Answer.", "what color?", *SETTINGS))
    chats, attention, words, turns, left = zip(*shown, strict=True)
    expected = pipeline.answer(Image.open(picture), "what color?", "Answer.", _decoding())
    assert texts(chats[-1]) == ["what color?", expected] and left[0] == ""
    assert all("value" not in box for box in left[1:]), "what is written meanwhile stays"
    assert attention[0] is None and attention[-1].startswith('<img src="data:image/png;base64,')
    assert 'alt="The picture with the attention' in attention[-1] and 'alt="The picture' in words[-1]
    assert words[-2] is None and turns[-1][0].answer == expected
    beams = list(function([picture], "Answer.", "what color?", 6, 3, 0.0, 0.9, 1.0))
    assert len(beams) == 3 and beams[0][0] == beams[-1][0]


def test_questions_follow_each_other_and_the_last_is_asked_again(pipeline, picture, tmp_path):
    from gitllm_plugin.web.page import build_page

    page, turns, asked = build_page(pipeline, "tiny", tmp_path), [], []
    for question in ("what color?", "is it large?", ""):
        *_, (chat, _, _, turns, _) = respond(page)([picture], "", question, *SETTINGS, turns=turns)
        asked += [question or "Describe the picture.", pipeline.answer(picture, question, None, _decoding())]
        assert texts(chat) == asked
    *_, (chat, _, _, again, left) = respond(page, "again")([picture], "", "half a quest", *SETTINGS, turns=turns)
    assert again == turns and texts(chat) == asked and "value" not in left


def test_other_pictures_begin_another_conversation_and_what_is_none_is_told_at_once(pipeline, picture, tmp_path):
    from gitllm_plugin.web.page import build_page

    (look,) = {f.fn for f in build_page(pipeline, "tiny", tmp_path).fns.values() if f.fn and f.fn.__name__ == "look"}
    assert list(look([picture])) == list(look([])) == [([], None, None, [])]
    for name, content, told in (
        ("notes.png", b"no picture", "bytes that are no image"),
        ("empty.jpg", b"", "empty.jpg"),
        ("cut.png", Path(picture).read_bytes()[:60], "cut.png"),
    ):
        (tmp_path / name).write_bytes(content)
        shown = look([str(tmp_path / name)])
        assert next(shown) == ([], None, None, [])
        with pytest.raises(gr.Error, match=told):
            next(shown)


def test_examples_are_the_models_own_where_they_are_known(pipeline, picture, tmp_path):
    from gitllm_plugin.web.examples import write_examples

    trained = [Question((Path(picture).read_bytes(),), "is it grey?", "Say."), Question((b"broken",), "lost?")]
    ((files, question, instruction),) = write_examples(tmp_path, trained)
    assert (question, instruction) == ("is it grey?", "Say.") and Image.open(files[0]).size == (256, 256)
    assert len(write_examples(tmp_path)) >= 3 and len(write_examples(tmp_path, trained[1:])) >= 3


def test_an_empty_box_asks_with_the_models_instruction_and_shows_it(pipeline, picture, tmp_path, monkeypatch):
    from gitllm_plugin.web.page import build_page

    page = build_page(pipeline, "tiny", tmp_path)
    box = instruction_box(page)
    assert box.placeholder == "Answer the question about the image." and "Describe the picture." in box.info
    prompts, build = [], Pipeline.prompt
    monkeypatch.setattr(Pipeline, "prompt", lambda *given: prompts.append(build(*given)) or prompts[-1])
    for untouched in (None, " "):
        list(respond(page)([picture], untouched, untouched, *SETTINGS))
    assert set(prompts) == {"Describe the picture. Answer:"}

    assert instruction_box(build_page(replace(pipeline, instruction="Look."), "tiny", tmp_path)).placeholder == "Look."


def _decoding():
    from gitllm_plugin.inference.pipeline import Decoding

    return Decoding(max_new_tokens=6)


@pytest.mark.parametrize(
    ("settings", "files", "message"),
    [
        (SETTINGS, None, "There is no picture yet"),
        ((6, 2, 1.0, 0.9, 1.0), "picture", "not both"),
        (SETTINGS, "text", "bytes that are no image"),
    ],
)
def test_what_is_wrong_is_a_message_of_the_page(pipeline, picture, tmp_path, settings, files, message):
    from gitllm_plugin.web.page import build_page

    (tmp_path / "notes.png").write_text("no picture")
    given = {None: None, "picture": [picture], "text": [str(tmp_path / "notes.png")]}[files]
    with pytest.raises(gr.Error, match=message):
        list(respond(build_page(pipeline, "tiny", tmp_path))(given, "", "what color?", *settings))


def test_an_unexpected_error_is_a_sentence_of_the_page_and_a_traceback_in_the_log(
    pipeline, picture, tmp_path, monkeypatch, caplog
):
    from gitllm_plugin.web.page import build_page

    def fail(**kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate much.")

    monkeypatch.setattr(pipeline.model, "generate", fail)
    with pytest.raises(gr.Error) as shown:
        list(respond(build_page(pipeline, "tiny", tmp_path))([picture], "", "what color?", *SETTINGS))
    assert "The model failed (OutOfMemoryError: CUDA out of memory); the whole error is" in str(shown.value)
    assert "Tried to allocate much" in caplog.text and "Traceback" in caplog.text


def test_several_pictures_and_the_frames_of_a_video(tmp_path, picture):
    av = pytest.importorskip("av", reason="videos need the extra `video`")
    import numpy as np

    with av.open(str(tmp_path / "video.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for level in range(8):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 30 * level, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    frames = read_pictures([str(tmp_path / "video.mp4")], 2)
    assert [frame.size for frame in frames] == [(64, 64)] * 2
    assert np.array(frames[0]).mean() < 90 < np.array(frames[1]).mean()
    with pytest.raises(DataError, match="3 pictures, but this model takes 2 at most"):
        read_pictures([picture] * 3, 2)


def test_a_port_that_is_taken_and_gradio_that_is_missing(folder, capsys, monkeypatch):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["demo", "--model", str(folder), "--port", str(taken.getsockname()[1])]) == 2
        assert "give another --port" in capsys.readouterr().err
    monkeypatch.setattr("gitllm_plugin.web.server.find_spec", lambda name: None)
    assert main(["demo", "--model", str(folder)]) == 2
    assert 'pip install "gitllm-plugin[web]"' in capsys.readouterr().err

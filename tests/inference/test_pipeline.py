"""The pipeline: equal to the model by hand, streaming, and what it refuses."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.inference.pictures import find_pictures
from gitllm_plugin.inference.pipeline import Decoding, Pipeline
from gitllm_plugin.m3it.pictures import open_picture
from gitllm_plugin.processors.image_transform import NORMALIZATIONS, ImageTransform
from tests.tiny_folder import TRANSFORM, write_tiny_folder

PICTURE = Image.linear_gradient("L").convert("RGB")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return Pipeline.from_pretrained(write_tiny_folder(tmp_path_factory.mktemp("model") / "tiny"), dtype="float32")


def test_an_answer_is_the_models_by_hand(pipeline):
    prompt = "Answer the question about the image. what color? Answer:"
    ids = pipeline.text_encoder.tokenizer(prompt, return_tensors="pt").input_ids
    expected = pipeline.model.generate(
        ids, None, TRANSFORM(PICTURE)[None], max_new_tokens=6, do_sample=False, eos_token_id=2, pad_token_id=0
    )
    answer = pipeline.answer(PICTURE, "what color?", decoding=Decoding(max_new_tokens=6))
    assert answer == pipeline.text_encoder.tokenizer.decode(expected[0], skip_special_tokens=True).strip()
    assert answer != pipeline.answer(Image.new("RGB", (9, 9)), "what color?", decoding=Decoding(max_new_tokens=6))


@pytest.mark.parametrize(
    ("own", "question", "instruction", "prompt"),
    [
        (None, "what color?", None, "Answer the question about the image. what color? Answer:"),
        (None, "", None, "Describe the picture. Answer:"),
        (None, "", "", "Answer:"),
        ("Look.", "", None, "Look. Answer:"),
        ("Look.", "why?", "Think.", "Think. why? Answer:"),
    ],
)
def test_an_instruction_stands_where_none_is_given(pipeline, own, question, instruction, prompt):
    assert replace(pipeline, instruction=own).prompt(question, instruction) == prompt


def test_a_stream_grows_to_the_answer(pipeline):
    decoding = Decoding(max_new_tokens=8)
    pieces = list(pipeline.stream(PICTURE, "is it red?", decoding=decoding))
    assert pieces[-1] == pipeline.answer(PICTURE, "is it red?", decoding=decoding)
    assert all(later.startswith(earlier.rstrip()) for earlier, later in zip(pieces, pieces[1:], strict=False))


def test_who_stops_reading_stops_the_model(pipeline):
    stream = pipeline.stream(PICTURE, "is it red?", decoding=Decoding(max_new_tokens=200, repetition_penalty=2.0))
    next(stream)
    stream.close()
    assert not pipeline._lock.locked()
    whole = pipeline.answer(PICTURE, "is it red?", decoding=Decoding(max_new_tokens=3))
    assert whole == list(pipeline.stream(PICTURE, "is it red?", decoding=Decoding(max_new_tokens=3)))[-1]


def test_an_error_while_streaming_is_raised_where_it_is_read(pipeline, monkeypatch):
    def fail(**kwargs):
        raise DataError("no room")

    monkeypatch.setattr(pipeline.model, "generate", fail)
    with pytest.raises(DataError, match="no room"):
        list(pipeline.stream(PICTURE, "is it red?"))


def test_sampling_and_beams_reach_the_model(pipeline):
    torch.manual_seed(0)
    sampled = {pipeline.answer(PICTURE, "?", decoding=Decoding(6, temperature=2.0, top_p=1.0)) for _ in range(5)}
    assert len(sampled) > 1
    assert pipeline.answer(PICTURE, "?", decoding=Decoding(6, num_beams=3))


@pytest.mark.parametrize(
    ("decoding", "message"),
    [
        (Decoding(max_new_tokens=0), "max_new_tokens and num_beams are at least 1"),
        (Decoding(top_p=0), "top_p above 0"),
        (Decoding(num_beams=2, temperature=1.0), "not both"),
    ],
)
def test_settings_that_cannot_be(pipeline, decoding, message):
    with pytest.raises(ConfigError, match=message):
        pipeline.answer(PICTURE, "?", decoding=decoding)


def test_beams_do_not_stream(pipeline):
    with pytest.raises(ConfigError, match="gives its answer at the end"):
        next(pipeline.stream(PICTURE, "?", decoding=Decoding(num_beams=2)))


def test_the_number_of_pictures(pipeline, tmp_path):
    for pictures in ([], [PICTURE, PICTURE]):
        with pytest.raises(DataError, match=f"{len(pictures)} pictures; this model takes 1 to 1"):
            pipeline.answer(pictures, "?")
    with pytest.raises(DataError, match="ask about each apart, or train a model with model.max_images: 3"):
        pipeline.answer([PICTURE] * 3, "?")
    several = Pipeline.from_pretrained(write_tiny_folder(tmp_path / "two", max_images=2), dtype="float32")
    assert several.pixels([PICTURE]).shape == (1, 1, 3, 32, 32)
    assert several.answer([PICTURE, PICTURE], "?", decoding=Decoding(4))


def test_pictures_in_every_form_give_the_same_answer(pipeline, tmp_path):
    PICTURE.save(tmp_path / "a.png")
    array = np.array(PICTURE)
    forms = [PICTURE, tmp_path / "a.png", str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes(), array]
    forms += [array.transpose(2, 0, 1), torch.from_numpy(array), array / 255, [PICTURE], array[None]]
    wanted = pipeline.pixels(PICTURE)
    for form in forms:
        assert torch.equal(pipeline.pixels(form), wanted)
    decoding = Decoding(max_new_tokens=3)
    answers = {pipeline.answer(form, "is it red?", decoding=decoding) for form in forms[:4]}
    assert len(answers) == 1
    assert np.array_equal(np.array(pipeline.seen(tmp_path / "a.png")), np.array(pipeline.seen(PICTURE)))


def test_a_picture_that_exif_turns_is_turned(pipeline):
    exif = Image.Exif()
    exif[0x0112] = 3
    buffer = io.BytesIO()
    PICTURE.save(buffer, "PNG", exif=exif)
    wanted = pipeline.pixels(PICTURE.transpose(Image.Transpose.ROTATE_180))
    assert torch.equal(pipeline.pixels(buffer.getvalue()), wanted)
    assert torch.equal(pipeline.pixels(Image.open(buffer)), wanted)


@pytest.mark.parametrize("question", [["is it red?", "is it blue?"], ("a",), None, 3])
def test_several_questions_are_told_what_to_do(pipeline, question):
    for ask in (pipeline.answer, lambda *given: next(pipeline.stream(*given))):
        with pytest.raises(DataError, match="give one text, and of several questions each in a call of its own"):
            ask(PICTURE, question)


@pytest.mark.parametrize("picture", [None, 3, "nowhere.png", b"no picture", np.zeros((0, 4, 3), np.uint8)])
def test_what_is_no_picture(pipeline, picture):
    with pytest.raises(DataError, match="no picture|cannot be read|no image|none"):
        pipeline.answer(picture, "?")


def test_a_folder_without_tokenizer_is_refused(pipeline, tmp_path):
    pipeline.model.save_pretrained(tmp_path / "bare")
    with pytest.raises(ConfigError, match="has no tokenizer; `gitllm export` writes both"):
        Pipeline.from_pretrained(tmp_path / "bare")


@pytest.mark.parametrize("resize", ["squash", "shortest_edge"])
def test_the_transform_is_the_one_of_training(pipeline, resize, tmp_path):
    transform = ImageTransform(32, *NORMALIZATIONS["siglip"], resize=resize)
    pipeline.model.save_pretrained(
        tmp_path / "model",
        tokenizer=pipeline.text_encoder.tokenizer,
        image_processor=transform.as_preprocessor_config(),
    )
    back = Pipeline.from_pretrained(tmp_path / "model", dtype="float32")
    wide = PICTURE.resize((90, 40))
    assert torch.equal(back.pixels([wide])[0], transform(wide))
    assert torch.equal(
        transform.normalize(torch.from_numpy(np.array(back.seen(wide))).permute(2, 0, 1)), transform(wide)
    )


def test_picture_files(tmp_path):
    PICTURE.save(tmp_path / "b.PNG")
    (tmp_path / "deep").mkdir()
    PICTURE.save(tmp_path / "deep" / "a.jpg")
    (tmp_path / "a.txt").write_text("no picture")
    assert [path.name for path in find_pictures(tmp_path)] == ["b.PNG", "a.jpg"]
    assert open_picture(tmp_path / "b.PNG").mode == "RGB"
    with pytest.raises(DataError, match="cannot be read"):
        open_picture(tmp_path / "missing.png")
    with pytest.raises(DataError, match="bytes that are no image"):
        open_picture(tmp_path / "a.txt")
    (tmp_path / "empty").mkdir()
    for name, message in (("empty", "holds no picture"), ("nowhere", "does not exist"), ("a.txt", "is a file")):
        with pytest.raises(DataError, match=f"{name} {message}"):
            find_pictures(tmp_path / name)

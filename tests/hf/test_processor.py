"""What the processor takes and refuses, and transformers' own pipeline."""

import base64
import io
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

from gitllm_plugin import Pipeline
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.hf.messages import read_question
from gitllm_plugin.inference.asking import Decoding
from tests.tiny_folder import TRANSFORM, write_tiny_folder

GRADIENT = Image.linear_gradient("L").convert("RGB")
TEAL = Image.new("RGB", (40, 30), "teal")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def processor(folder):
    return AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def ask(folder):
    return pipeline("image-text-to-text", model=str(folder), dtype=torch.float32)


def user(*parts):
    return [{"role": "user", "content": list(parts)}]


def said(text):
    return {"type": "text", "text": text}


def encoded(picture):
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize("question", ["is it red?", "", "what color is the shape? answer with </s>"])
def test_transformers_pipeline_answers_as_this_packages(ask, folder, question):
    ours = Pipeline.from_pretrained(folder, dtype="float32")
    chat = user({"type": "image", "image": GRADIENT}, said(question))
    for settings, decoding in (({}, None), ({"max_new_tokens": 4}, Decoding(4))):
        wanted = ours.answer(GRADIENT, question, decoding=decoding)
        [found] = ask(text=chat, return_full_text=False, **settings)
        assert found["generated_text"].strip() == wanted
        [whole] = ask(text=chat, **settings)
        assert whole["generated_text"][-1]["role"] == "assistant"
        assert whole["generated_text"][-1]["content"].strip() == wanted
    beams = ask(text=chat, return_full_text=False, max_new_tokens=4, generate_kwargs={"num_beams": 2})
    assert beams[0]["generated_text"].strip() == ours.answer(GRADIENT, question, decoding=Decoding(4, 2))


def test_several_chats_and_prompts_of_the_pipeline(ask, folder, processor, caplog):
    ours = Pipeline.from_pretrained(folder, dtype="float32")
    chats = [
        user({"type": "image", "image": GRADIENT}, said("is it red?")),
        user({"type": "image", "image": TEAL}, said("")),
    ]
    found = ask(text=chats, return_full_text=False, max_new_tokens=4)
    wanted = [ours.answer(GRADIENT, "is it red?", decoding=Decoding(4)), ours.answer(TEAL, "", decoding=Decoding(4))]
    assert [each[0]["generated_text"].strip() for each in found] == wanted
    found = ask(text=chats, return_full_text=False, max_new_tokens=4, batch_size=2)
    assert [each[0]["generated_text"].strip() for each in found] == wanted
    prompts = processor.apply_chat_template(chats)
    found = ask(images=[GRADIENT, TEAL], text=prompts, return_full_text=False, max_new_tokens=4)
    assert [each["generated_text"].strip() for each in found] == wanted
    assert "is not supported" not in caplog.text


def test_a_picture_in_every_form_gives_the_same_pixels(processor, tmp_path):
    GRADIENT.save(tmp_path / "a.png")
    forms = [
        {"type": "image", "image": GRADIENT},
        {"type": "image", "image": np.array(GRADIENT)},
        {"type": "image", "path": str(tmp_path / "a.png")},
        {"type": "image", "url": str(tmp_path / "a.png")},
        {"type": "image", "base64": encoded(GRADIENT)},
        {"type": "image", "url": f"data:image/png;base64,{encoded(GRADIENT)}"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded(GRADIENT)}"}},
        {"type": "image_url", "image_url": str(tmp_path / "a.png")},
    ]
    for form in forms:
        inputs = processor.apply_chat_template(user(form, said("?")), tokenize=True, return_dict=True)
        assert torch.equal(inputs["pixel_values"], TRANSFORM(GRADIENT)[None])


def test_the_prompt_is_that_of_training(processor, folder):
    ours = Pipeline.from_pretrained(folder, dtype="float32")
    chat = [{"role": "system", "content": "Think."}, *user({"type": "image", "image": TEAL}, said("is"), said("it?"))]
    assert processor.apply_chat_template(chat) == ours.prompt("is\nit?", "Think.")
    assert processor.apply_chat_template([user(said("why?"))]) == [ours.prompt("why?")]
    inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True)
    assert torch.equal(inputs["input_ids"], ours.text_encoder.prompts([ours.prompt("is\nit?", "Think.")]).input_ids)
    assert torch.equal(processor.apply_chat_template(chat, tokenize=True), inputs["input_ids"])


def test_padding_stands_in_front_of_prompts_and_behind_answers(processor):
    texts = ["Answer:", "what color is the shape? Answer:"]
    asked = processor([GRADIENT, TEAL], texts)
    lengths = asked["attention_mask"].sum(1).tolist()
    assert (
        lengths[0] < lengths[1]
        and asked["attention_mask"][0].tolist() == [0] * (lengths[1] - lengths[0]) + [1] * lengths[0]
    )
    trained = processor([GRADIENT, [TEAL]], texts, answers=["red", "no"])
    assert trained["attention_mask"][0].tolist() == sorted(trained["attention_mask"][0].tolist(), reverse=True)
    assert (trained["labels"][0] != -100).sum() == len(processor.tokenizer(" red").input_ids) + 1


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ([], "messages are of: none"),
        (user(said("?")), "0 pictures of a text; this model takes 1 to 1"),
        (user({"type": "image", "image": TEAL}, {"type": "image", "image": TEAL}), "2 pictures of a text"),
        ([*user(said("?")), {"role": "assistant", "content": "yes"}], "messages are of: user, assistant"),
        ([*user(said("?")), *user(said("and?"))], "messages are of: user, user"),
        ([{"role": "tool", "content": "x"}], "messages are of: tool"),
        (
            [*user(said("?")), {"role": "assistant", "content": "yes"}, *user({"type": "image", "image": TEAL})],
            "pictures stand in front of a conversation",
        ),
        (user({"type": "video", "video": "a.mp4"}), "a part of type 'video'"),
        (user({"type": "image"}), "has its picture as one of image, url, path, base64"),
        (user({"type": "image", "image": TEAL, "path": "a.png"}), "has its picture as one of"),
        (user({"type": "text"}), "has no text"),
        ([{"role": "user", "content": 3}], "a text or a list of parts, not 3"),
        ([{"role": "user"}], "a text or a list of parts, not None"),
        ("is it red?", "a conversation is a list of messages"),
        (user({"type": "image", "path": "nowhere.png"}, said("?")), "cannot be read"),
        (user({"type": "image", "base64": "no base64!"}, said("?")), "a picture is not base64"),
        (user({"type": "image", "image": 7}, said("?")), "picture"),
    ],
)
def test_what_no_conversation_of_one_question_is(processor, chat, message):
    with pytest.raises(DataError, match=message):
        processor.apply_chat_template(chat, tokenize=True, return_dict=True)


@pytest.mark.parametrize(
    "arguments",
    [{"continue_final_message": True}, {"tools": [{}]}, {"chat_template": "{{ x }}"}, {"enable_thinking": True}],
)
def test_arguments_of_templates_are_refused(processor, arguments):
    with pytest.raises(ConfigError, match=f"does not know {next(iter(arguments))}"):
        processor.apply_chat_template(user({"type": "image", "image": TEAL}, said("?")), **arguments)


@pytest.mark.parametrize(
    ("images", "text", "message"),
    [
        (None, "?", "0 pictures"),
        ([TEAL], ["?", "!"], "2 texts and 1 pictures"),
        (TEAL, ["?"], "1 texts and no list of pictures"),
        ([TEAL], None, "0 texts and 1 pictures"),
        ([], [], "0 texts and 0 pictures"),
    ],
)
def test_pictures_and_texts_that_do_not_match(processor, images, text, message):
    with pytest.raises(DataError, match=message):
        processor(images, text)


@pytest.mark.parametrize("arguments", [{"return_tensors": "np"}, {"padding": "max_length"}])
def test_other_tensors_and_paddings_are_refused(processor, arguments):
    with pytest.raises(ConfigError, match="may be 'pt', and True or 'longest'"):
        processor(TEAL, "?", **arguments)


def test_other_arguments_are_refused(processor, folder, tmp_path):
    with pytest.raises(TypeError, match="videos"):
        processor(TEAL, "?", videos=[])
    with pytest.raises(ConfigError, match="does not know max_pixels"):
        AutoProcessor.from_pretrained(folder, max_pixels=3)
    with pytest.raises(ConfigError, match="does not know push_to_hub"):
        processor.save_pretrained(tmp_path / "new", push_to_hub=True)
    assert "GitLLMProcessor" in repr(processor)


def test_a_prompt_that_does_not_fit_is_told(ask):
    with pytest.raises(DataError, match="context"):
        ask(text=user({"type": "image", "image": TEAL}, said("what color? " * 100)), max_new_tokens=4)


def test_a_folder_without_its_configuration_is_told(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "old")
    (tmp_path / "old" / "config.json").unlink()
    description = (tmp_path / "old" / "git_llm.json").read_text()
    without = "\n".join(line for line in description.splitlines() if '"config.json"' not in line)
    (tmp_path / "old" / "git_llm.json").write_text(without)
    with pytest.raises(ConfigError, match="has no config.json: an earlier version wrote it"):
        type(AutoProcessor.from_pretrained(folder)).from_pretrained(tmp_path / "old")
    with pytest.raises(ValueError, match="Unrecognized model in"):
        AutoModelForImageTextToText.from_pretrained(tmp_path / "old")


def test_a_question_needs_no_text():
    assert read_question(user({"type": "image", "image": TEAL})).text == ""

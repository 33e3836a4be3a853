import base64
import json
from collections import Counter

import pytest

from examples.easyvqa.data import Question, convert, count_rows, describe_images, read_rows
from examples.easyvqa.errors import DemoError
from gitllm_plugin.m3it.examples import JsonlExamples
from gitllm_plugin.m3it.tree import find_sources


@pytest.fixture
def converted(easy_vqa, tmp_path):
    convert(easy_vqa, tmp_path / "m3it", val_images=6, shuffled_images=10)
    return tmp_path / "m3it"


def test_every_question_is_in_one_split_and_configuration(converted):
    counts = count_rows(converted)
    assert sum(counts["train"].values()) + sum(counts["val"].values()) == 24 + 60  # captions, questions
    assert counts["test"] == {"caption": 16, "open": 20, "yesno": 20}
    assert counts["val"]["yesno"] == 6
    assert counts["test_shuffled"]["open_shuffled"] == 10


@pytest.mark.parametrize("split", ["train", "train_short", "val", "test", "test_shuffled"])
def test_the_plugin_reads_every_split(converted, split):
    examples = JsonlExamples(find_sources(str(converted / split / "*.jsonl")))
    assert len(examples) == sum(count_rows(converted)[split].values())
    assert {text.config for group in examples for text in group.texts} == set(count_rows(converted)[split])


def test_test_split_and_control_can_be_evaluated_together(converted):
    """Ids are unique over both."""
    storage = [str(converted / "test" / "*.jsonl"), str(converted / "test_shuffled" / "*.jsonl")]
    assert len(JsonlExamples(find_sources(storage))) > 56


def test_rows_have_question_answer_and_the_picture_as_it_is(converted, easy_vqa):
    row = read_rows(converted / "test" / "open.jsonl")[0]
    assert row["instruction"] == ""  # the question says it all, and each token costs
    assert (row["inputs"], row["outputs"]) == ("what is the red shape?", "rectangle")
    assert base64.b64decode(row["image_base64_str"]) == (easy_vqa / "test" / "images" / "0.png").read_bytes()
    caption = read_rows(converted / "test" / "caption.jsonl")[1]
    assert (caption["instruction"], caption["inputs"]) == ("Describe the picture.", "")
    assert caption["outputs"] == "a green circle"


def test_captions_need_colour_and_shape():
    questions = [
        Question("what is the color of the triangle?", "teal", 1),
        Question("what is the color of the shape?", "teal", 2),
        Question("what shape is present?", "circle", 3),
        Question("is there a red shape?", "yes", 3),
        Question("what is the black shape?", "circle", 4),
        Question("what shape is in the image?", "rectangle", 5),
        Question("what color is the shape?", "blue", 5),
    ]
    assert describe_images(questions) == {1: "a teal triangle", 4: "a black circle", 5: "a blue rectangle"}


def test_validation_pictures_are_not_trained_on(converted):
    def pictures(split):
        return {row["image_base64_str"] for path in (converted / split).iterdir() for row in read_rows(path)}

    assert len(pictures("val")) == 6
    assert not pictures("val") & pictures("train")


def test_short_course_is_a_part_of_train_with_few_texts_a_picture(converted):
    def rows(split, config):
        return read_rows(converted / split / f"{config}.jsonl")

    assert rows("train_short", "caption") == rows("train", "caption")
    for config in ("open", "yesno"):
        short, whole = rows("train_short", config), rows("train", config)
        assert 0 < len(short) <= len(whole) and all(row in whole for row in short)
        assert max(Counter(row["image_base64_str"] for row in short).values()) <= 2


def test_every_picture_of_the_control_belongs_to_another_example(converted):
    for config in ("caption", "open"):
        right = {row["id"]: row["image_base64_str"] for row in read_rows(converted / "test" / f"{config}.jsonl")}
        shuffled = read_rows(converted / "test_shuffled" / f"{config}_shuffled.jsonl")
        assert shuffled
        for row in shuffled:
            assert row["image_base64_str"] != right[row["id"].removeprefix("shuffled-")]
            assert row["image_base64_str"] in set(right.values()) or config == "caption"


def test_conversion_is_the_same_every_time(converted, easy_vqa, tmp_path):
    convert(easy_vqa, tmp_path / "again", val_images=6, shuffled_images=10)
    for path in converted.glob("*/*.jsonl"):
        assert (tmp_path / "again" / path.relative_to(converted)).read_bytes() == path.read_bytes()


def test_missing_picture_is_named_and_nothing_half_made_is_left(easy_vqa, tmp_path):
    (easy_vqa / "test" / "images" / "3.png").unlink()
    with pytest.raises(DemoError, match=r"easy-VQA is incomplete.*3\.png"):
        convert(easy_vqa, tmp_path / "out" / "m3it", val_images=6, shuffled_images=10)
    assert list((tmp_path / "out").iterdir()) == []


def test_missing_questions_are_named(tmp_path):
    with pytest.raises(DemoError, match=r"questions\.json"):
        convert(tmp_path, tmp_path / "m3it")


def test_rows_are_one_json_object_per_line(converted):
    for line in (converted / "val" / "yesno.jsonl").read_text().splitlines():
        assert set(json.loads(line)) == {"id", "config", "instruction", "inputs", "outputs", "image_base64_str"}

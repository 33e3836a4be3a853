"""Pairs of answers: from tables and messages to rows, shards, items and batches; and what is refused."""

import csv
import json

import pytest
import torch
from PIL import Image

from gitllm_plugin.cli.main import main
from gitllm_plugin.errors import DataError
from gitllm_plugin.host.locate import prepare
from gitllm_plugin.m3it.examples import JsonlExamples
from gitllm_plugin.m3it.from_table import convert_table
from gitllm_plugin.m3it.shards.format import read_group, write_group
from gitllm_plugin.m3it.tree import find_sources

prepare()

from gitllm_plugin.datasets.datasets.m3it_dataset import M3ITDataset  # noqa: E402

PAIRS = [("What is it?", "A boat.", "A car."), ("Which color?", "Red.", "Blue, I think."), ("Old?", "No.", "Yes.")]
TALK = [("What is it?", "A boat."), ("Which color?", "Red.")]


@pytest.fixture
def folder(tmp_path):
    for index in range(3):
        Image.new("RGB", (30, 20), (index * 20, 100, 50)).save(tmp_path / f"{index}.png")
    return tmp_path


def turn(role, content):
    return {"role": role, "content": content}


def as_messages(number):
    question, chosen, rejected = PAIRS[number]
    asked = [{"type": "image"}, {"type": "text", "text": question}]
    ends = {"chosen": [turn("assistant", chosen)], "rejected": [turn("assistant", rejected)]}
    return {"images": [f"{number}.png"], "prompt": [turn("user", asked)], **ends}


def as_whole_conversations(number):
    row = as_messages(number)
    return {"images": row["images"], **{key: row["prompt"] + row[key] for key in ("chosen", "rejected")}}


def as_texts(number):
    question, chosen, rejected = PAIRS[number]
    return {"images": [f"{number}.png"], "prompt": question, "chosen": chosen, "rejected": rejected}


def as_columns(number):
    question, chosen, rejected = PAIRS[number]
    return {"image": f"{number}.png", "question": question, "chosen": chosen, "rejected": rejected}


def texts_of(folder):
    return [text for group in JsonlExamples(find_sources(str(folder / "train.jsonl"))) for text in group.texts]


@pytest.mark.parametrize("form", [as_messages, as_whole_conversations, as_texts, as_columns])
def test_both_answers_of_every_form_are_read(form, folder, capsys):
    file = folder / "pairs.json"
    file.write_text(json.dumps([form(number) for number in range(3)]))
    assert main(["m3it", "from-messages", str(file), str(folder / "out")]) == 0
    assert "note" not in capsys.readouterr().err
    found = [(text.question, text.answers, text.rejected) for text in texts_of(folder / "out")]
    assert found == [(question, (chosen,), rejected) for question, chosen, rejected in PAIRS]


@pytest.mark.parametrize("better", ["answer", "chosen", " Chosen "])
def test_a_table_may_call_its_better_answers_chosen(better, folder, capsys):
    with open(folder / "pairs.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "question", better, "rejected"])
        rows.writerows([f"{number}.png", *pair] for number, pair in enumerate(PAIRS[:2]))
        rows.writerow(["2.png", "Old?", "No.", ""])
    assert main(["m3it", "from-csv", str(folder / "pairs.csv"), str(folder / "out")]) == 0
    assert "rows without a rejected answer" in capsys.readouterr().err
    assert [text.rejected for text in texts_of(folder / "out")] == ["A car.", "Blue, I think.", None]


def test_of_a_conversation_the_last_answer_has_two(folder):
    said = [turn(role, text) for pair in TALK for role, text in zip(("user", "assistant"), pair, strict=True)]
    row = {"image": "0.png", "prompt": said[:-1], "chosen": said[-1:], "rejected": [turn("assistant", "Green.")]}
    (folder / "pairs.jsonl").write_text(json.dumps(row))
    convert_table(folder / "pairs.jsonl", folder / "out")
    (text,) = texts_of(folder / "out")
    assert (text.question, text.answers, text.rejected) == ("Which color?", ("Red.",), "Green.")
    assert text.turns == (("What is it?", "A boat."),)


def changed(**changes):
    return {**as_messages(0), **changes}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (changed(rejected=[turn("assistant", "A boat.")]), "the rejected answer is the right one, 'A boat.'"),
        (changed(rejected=[]), "'rejected' has 0 turns behind what both have in common, expected one"),
        (changed(chosen=[turn("assistant", "A"), turn("user", "B")]), "'chosen' has 2 turns"),
        (changed(chosen=[turn("user", "A boat.")]), "expected user and assistant, one after another"),
        (changed(rejected=[turn("assistant", "")]), "is empty"),
        ({key: value for key, value in as_whole_conversations(0).items() if key != "images"}, "0 images"),
        ({**as_columns(0), "rejected": "A boat."}, "the rejected answer is the right one, 'A boat.'"),
    ],
)
def test_a_pair_that_is_none_is_refused(row, message, folder):
    (folder / "pairs.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=message):
        convert_table(folder / "pairs.jsonl", folder / "out")


def uniform(rejected, **more):
    row = {"instruction": "Answer.", "inputs": "Which color?", "image_base64_str": "", "outputs": "red", **more}
    return json.dumps({**row, "rejected": rejected}) + "\n"


@pytest.mark.parametrize(
    ("rejected", "more", "message"),
    [
        ("red ", {}, "which is an accepted answer: nothing to prefer"),
        ("crimson", {"outputs": ["red", "crimson"]}, "which is an accepted answer"),
        ("  ", {}, "expected a text that is worse than the answer"),
        (["blue"], {}, "'rejected' is list"),
        (7, {}, "'rejected' is int 7"),
    ],
)
def test_a_row_whose_rejected_answer_is_none_is_named(rejected, more, message, tmp_path):
    (tmp_path / "rows.jsonl").write_text(uniform("blue") + uniform(rejected, **more))
    with pytest.raises(DataError, match=rf"rows.jsonl:2: .*{message}"):
        JsonlExamples(find_sources(str(tmp_path / "rows.jsonl")), allow_text_only=True)


def test_pairs_go_through_shards_items_and_batches(tmp_path):
    (tmp_path / "rows.jsonl").write_text(uniform("blue") + uniform("green") + uniform(None))
    examples = JsonlExamples(find_sources(str(tmp_path / "rows.jsonl")), allow_text_only=True)
    for number, rejected in enumerate(("blue", "green", None)):
        group = examples[number]
        members = {name.partition(".")[2]: content for name, content in write_group(group)}
        assert read_group(members, "here") == group and group.texts[0].rejected == rejected
        assert (b"rejected" in members["json"]) == (rejected is not None)
    data = M3ITDataset(lambda image: torch.zeros(3, 2, 2), lambda text: text, examples)
    batch = data.collater([data[index] for index in range(3)])
    assert batch["text_rejected"] == ["blue", "green", None] and batch["text_output"] == ["red"] * 3
    assert "text_rejected" not in data.collater([data[2]])
    assert data.displ_item(0)["rejected"] == "blue" and "rejected" not in data.displ_item(2)

"""Conversations: from the files of others to rows, shards and items; each turn knows those before it."""

import json

import orjson
import pytest
from PIL import Image

from gitllm_plugin.cli.main import main
from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it.examples import JsonlExamples
from gitllm_plugin.m3it.from_table import convert_table
from gitllm_plugin.m3it.group import join_groups
from gitllm_plugin.m3it.shards.format import read_group, write_group
from gitllm_plugin.m3it.tree import find_sources

TALK = [("What is it?", "A boat."), ("Which color?", "Red."), ("Is it new?", "No.")]


@pytest.fixture
def folder(tmp_path):
    for index in range(12):
        Image.new("RGB", (30, 20), (index * 20, 100, 50)).save(tmp_path / f"{index}.png")
    return tmp_path


def llava(talk, image="1.png", **more):
    turns = [{"from": who, "value": said} for pair in talk for who, said in zip(("human", "gpt"), pair, strict=True)]
    turns[0]["value"] = f"<image>\n{turns[0]['value']}"
    return {"id": "a", "image": image, "conversations": turns, **more}


def messages(talk, image="1.png"):
    said = [
        {"role": who, "content": text} for pair in talk for who, text in zip(("user", "assistant"), pair, strict=True)
    ]
    said[0]["content"] = [{"type": "image", "image": image}, {"type": "text", "text": said[0]["content"]}]
    return {"messages": [{"role": "system", "content": "Be brief."}, *said]}


def in_messages_beside(talk):
    row = messages(talk)
    row["messages"][1]["content"] = [{"type": "image"}, {"type": "text", "text": talk[0][0]}]
    return {**row, "images": ["1.png"]}


def texts_of(path):
    return [text for group in JsonlExamples(find_sources(str(path))) for text in group.texts]


@pytest.mark.parametrize(
    "row", [llava(TALK), messages(TALK), in_messages_beside(TALK)], ids=["llava", "messages", "images beside messages"]
)
@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_each_turn_is_a_text_that_knows_those_before(row, kind, folder):
    file = folder / f"chats.{kind}"
    file.write_text(json.dumps([row] if kind == "json" else row))
    assert convert_table(file, folder / "out") == {"train": 1}
    texts = texts_of(folder / "out" / "train.jsonl")
    assert [(text.question, text.answers) for text in texts] == [(question, (answer,)) for question, answer in TALK]
    assert [text.turns for text in texts] == [(), (TALK[0],), (TALK[0], TALK[1])]
    system = "Be brief." if "messages" in row else "Answer the question about the image."
    assert {text.instruction for text in texts} == {system}
    assert len({text.id for text in texts}) == 3
    (line,) = (folder / "out" / "train.jsonl").read_text().splitlines()
    assert orjson.loads(line)["turns"] == [list(turn) for turn in TALK[1:]]


def test_shards_keep_them_and_a_single_question_has_none(folder):
    (folder / "chats.jsonl").write_text(
        "\n".join(json.dumps(row) for row in (llava(TALK), llava(TALK[:1], "2.png", id="b")))
    )
    convert_table(folder / "chats.jsonl", folder / "out")
    groups = list(join_groups(JsonlExamples(find_sources(str(folder / "out" / "train.jsonl")))))
    assert sorted(len(group.texts) for group in groups) == [1, 3]
    for group in groups:
        members = dict(write_group(group))
        assert read_group(members, "here") == group
        (content,) = (orjson.loads(data) for name, data in members.items() if name.endswith("json"))
        assert ["turns" in text for text in content["texts"]] == [bool(text.turns) for text in group.texts]


def turn(who, said):
    return {"from": who, "value": said}


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"image": "1.png", "conversations": []}, "the turns none, expected user and assistant"),
        ({"image": "1.png", "conversations": [turn("human", "a")]}, "the turns user, expected"),
        ({"image": "1.png", "conversations": [turn("gpt", "a"), turn("human", "b")]}, "the turns assistant, user"),
        ({"image": "1.png", "conversations": [turn("human", "a"), turn("human", "b"), turn("gpt", "c")]}, "user, user"),
        (
            {"image": "1.png", "conversations": [turn("robot", "a"), turn("gpt", "b")]},
            "said by str 'robot', expected one",
        ),
        ({"image": "1.png", "conversations": [{"value": "a"}]}, "said by null"),
        ({"image": "1.png", "conversations": ["a", "b"]}, "turn 1 of 'conversations' is str 'a', expected an object"),
        ({"image": "1.png", "conversations": [turn("human", "a"), turn("gpt", " ")]}, "turn 2 .* is empty"),
        ({"image": "1.png", "conversations": [turn("human", None), turn("gpt", "b")]}, "turn 1 .* has"),
        ({"image": "1.png", "conversations": [turn("human", "<image><image> a"), turn("gpt", "b")]}, "2 times <image>"),
        ({"conversations": [turn("human", "a"), turn("gpt", "b")]}, "has no image"),
        (
            llava([*TALK[:1], ("<image> and this?", "b")], ["1.png", "2.png"]),
            "turn 3 .* stand in front of a conversation here",
        ),
        ({**messages(TALK), "image": "2.png"}, "both beside the turns and in them"),
        (llava(TALK, "none.png"), "none.png"),
        (llava([("a", "b\0c")]), "NUL byte"),
        (llava([("a", "b"), ("c", "d\0e")]), "'turns' has a NUL byte"),
        ({"messages": [{"role": "user", "content": [{"type": "audio", "audio": "x"}]}]}, "parts of the types text and"),
    ],
)
def test_what_cannot_be_used_is_told_with_its_place(row, told, folder):
    file = folder / "chats.jsonl"
    file.write_text(json.dumps(llava(TALK[:1], "3.png", id="first")) + "\n" + json.dumps(row))
    with pytest.raises(DataError, match=rf"chats.jsonl:2: (.|\n)*{told}"):
        convert_table(file, folder / "out")
    assert not (folder / "out" / "train.jsonl").exists()


@pytest.mark.parametrize(
    ("turns", "told"),
    [("a", "'turns' has 'a'"), ([["a"]], "'turns' has"), ([["a", "b", "c"]], "'turns' has"), ([["a", 3]], "int 3")],
)
def test_turns_of_a_row_are_checked(turns, told, folder):
    (folder / "chats.jsonl").write_text(json.dumps(llava(TALK)))
    convert_table(folder / "chats.jsonl", folder / "out")
    path = folder / "out" / "train.jsonl"
    path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), "turns": turns}))
    with pytest.raises(DataError, match=told):
        texts_of(path)


def test_the_command(folder, capsys):
    (folder / "chats.json").write_text(json.dumps([llava(TALK, f"{n}.png", id=str(n), model="x") for n in range(12)]))
    made = folder / "made"
    assert main(["m3it", "from-messages", str(folder / "chats.json"), str(made), "--val", "0.3"]) == 0
    printed = capsys.readouterr()
    assert "train: " in printed.out and "val: " in printed.out and "all: 12 rows" in printed.out
    assert "columns that are not read: 'model'" in printed.err
    assert main(["m3it", "check", str(made)]) == 0
    with pytest.raises(SystemExit):
        main(["m3it", "from-messages", str(folder / "chats.csv"), str(made)])
    assert "does not end in .json or .jsonl" in capsys.readouterr().err

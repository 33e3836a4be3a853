"""Reading uniform M3IT files, and what is said about bad ones."""

import base64
import json
import os
import pickle

import pytest

from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it import rows as rows_module
from gitllm_plugin.m3it import tables
from gitllm_plugin.m3it.examples import JsonlExamples
from gitllm_plugin.m3it.group import Text, hash_images
from gitllm_plugin.m3it.rows import cut_images
from gitllm_plugin.m3it.tree import Source, find_sources
from tests.m3it_files import write_m3it_jsonl

PIXEL = "aGVsbG8="  # base64, which is all that is checked when a file is opened


def make_row(**changes) -> dict:
    row = {"instruction": "Answer.", "inputs": "why?", "image_base64_str": PIXEL, "outputs": "because"}
    return {key: value for key, value in {**row, **changes}.items() if value is not ...}


def texts_of(examples: JsonlExamples) -> list[Text]:
    return [text for group in examples for text in group.texts]


def open_rows(tmp_path, *rows, **options) -> JsonlExamples:
    path = tmp_path / "train.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return JsonlExamples(find_sources(str(path)), **options)


def test_examples_equal_the_rows_in_any_order(tmp_path):
    rows = write_m3it_jsonl(tmp_path / "a.jsonl", rows=5, config="toy")
    examples = JsonlExamples(find_sources(str(tmp_path / "a.jsonl")))
    assert len(examples) == 5
    for index in (4, 0, 2, -1):
        group, row = examples[index], rows[index]
        (example,) = group.texts
        assert example.id == row["id"]
        assert example.config == group.config == "toy"
        assert (example.instruction, example.question) == (row["instruction"], row["inputs"])
        assert example.answers == (row["outputs"],)
        assert group.images == (base64.b64decode(row["image_base64_str"]),)
        assert hash_images(group.images).hex() == examples.image_key(index % 5)
    with pytest.raises(IndexError):
        examples[5]


def test_iteration_ends(tmp_path):
    write_m3it_jsonl(tmp_path / "a.jsonl", rows=3)
    assert [text.id for text in texts_of(JsonlExamples(find_sources(str(tmp_path / "a.jsonl"))))] == [
        "toy-0-0",
        "toy-0-1",
        "toy-0-2",
    ]


def test_references_lists_of_images_and_text_only_rows(tmp_path):
    examples = open_rows(
        tmp_path,
        make_row(outputs=["a", "b"], image_base64_str=[PIXEL, "aaaa"]),
        make_row(image_base64_str=[]),
        make_row(image_base64_str=""),
        make_row(image_base64_str=None),
        allow_text_only=True,
    )
    assert texts_of(examples)[0].answers == ("a", "b")
    assert examples[0].images == (b"hello", base64.b64decode("aaaa"))
    assert [group.images for group in examples][1:] == [()] * 3
    assert [examples.image_key(index) for index in (1, 2, 3)] == [""] * 3


def test_equal_images_have_equal_keys(tmp_path):
    examples = open_rows(
        tmp_path,
        make_row(),
        make_row(inputs="other"),
        make_row(image_base64_str=[PIXEL]),
        make_row(image_base64_str=[PIXEL, PIXEL]),
        make_row(image_base64_str=["aaaa"]),
    )
    keys = [examples.image_key(index) for index in range(5)]
    assert keys[0] == keys[1] == keys[2]
    assert len(set(keys)) == 3


def test_configuration_of_mapping_row_or_folder(tmp_path):
    for name, row in (("by_row/a.jsonl", make_row(config="vqa")), ("by_folder/a.jsonl", make_row())):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(json.dumps(row))
    paths = [str(tmp_path / "by_row/a.jsonl"), str(tmp_path / "by_folder/a.jsonl")]
    assert [text.config for text in texts_of(JsonlExamples(find_sources(paths)))] == ["vqa", "by_folder"]
    mapped = JsonlExamples(find_sources({"mine": paths}))
    assert [text.config for text in texts_of(mapped)] == ["mine", "mine"]
    assert [text.id for text in texts_of(mapped)] == ["mine/a/1", "mine/a-2/1"]


def test_blank_lines_are_passed_over_and_lines_keep_their_numbers(tmp_path):
    examples = open_rows(tmp_path, "", make_row(id=7), "  ", make_row())
    assert [text.id for text in texts_of(examples)] == ["7", f"{tmp_path.name}/train/4"]
    assert examples.place_of(1).endswith("train.jsonl:4")


def test_no_newline_at_the_end_and_utf8(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        json.dumps(make_row()) + "\r\n" + json.dumps(make_row(outputs="茶"), ensure_ascii=False),
        encoding="utf-8",
    )
    assert texts_of(JsonlExamples(find_sources(str(path))))[1].answers == ("茶",)


@pytest.mark.parametrize(
    "row, message",
    [
        ("{not json", r"train.jsonl:2: not JSON: .*starts with b'\{not json"),
        ("[1, 2]", "a JSON list where an object is expected"),
        (make_row(outputs=..., inputs=...), "missing 'inputs', 'outputs'; the row has 'instruction'"),
        (make_row(outputs=""), "an answer is empty"),
        (make_row(outputs=[]), "the list of answers is empty"),
        (make_row(outputs=["a", " "]), "an answer is empty"),
        (make_row(outputs=3), "an answer is int 3, expected text or a list of texts"),
        (make_row(inputs=None), "the question is null, expected text"),
        (make_row(instruction=["x"]), r"the instruction is list \['x'\], expected text"),
        (make_row(image_base64_str=[]), "no image; allow_text_only: true"),
        (make_row(image_base64_str=[PIXEL, None]), "one of the row's images is null"),
        (
            make_row(image_base64_str="photo.jpg"),
            "is not plain base64 .*; it starts with 'photo.jpg'",
        ),
        (make_row(image_base64_str="aaaaa"), "is not plain base64 .*; it starts with 'aaaaa'"),
        (make_row(image_base64_str="a==="), "is not plain base64"),
        (make_row(image_base64_str="a=aa"), "is not plain base64"),
        (make_row(image_base64_str="茶aaa"), "is not plain base64"),
        (make_row(image_base64_str=[PIXEL, "aa a"]), "is not plain base64"),
        (make_row(config=3), "'config' is int 3, expected a name"),
        (make_row(id=None), "'id' is null, expected text or an integer"),
    ],
)
def test_bad_row_is_named_with_place_and_reason(tmp_path, row, message):
    with pytest.raises(DataError, match=message) as caught:
        open_rows(tmp_path, make_row(), row)
    assert f"{tmp_path}/train.jsonl:2: " in str(caught.value)
    assert "Expected: a row is one JSON object" in str(caught.value)


def test_all_problems_are_counted_and_ten_are_shown(tmp_path):
    with pytest.raises(DataError) as caught:
        open_rows(tmp_path, make_row(), *["oops"] * 13)
    message = str(caught.value)
    assert message.startswith("13 problems in the M3IT files:")
    assert message.count("not JSON") == 10
    assert "... and 3 more" in message


def test_ids_must_be_unique(tmp_path):
    with pytest.raises(DataError, match=r"train.jsonl:3: id 'x' is also that of .*train.jsonl:1"):
        open_rows(tmp_path, make_row(id="x"), make_row(), make_row(id="x"))


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_empty_file(tmp_path, content):
    path = tmp_path / "empty.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match="empty.jsonl: the file is empty"):
        JsonlExamples(find_sources(str(path)))


def test_limit_reads_no_further(tmp_path):
    assert len(open_rows(tmp_path, make_row(), "", make_row(), "not json", limit=2)) == 2


def test_missing_files_are_all_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        find_sources({"a": "no.jsonl", "b": ["none/*.jsonl", str(tmp_path)]})
    message = str(caught.value)
    assert f"no such file: {tmp_path}/no.jsonl (given as 'no.jsonl', working directory {tmp_path})" in message
    assert f"no file matches {tmp_path}/none/*.jsonl" in message
    assert f"{tmp_path} is a folder" in message


def test_paths_wildcards_and_repeats(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("b.jsonl", "a.jsonl", "a[1].jsonl"):
        write_m3it_jsonl(name, rows=1)
    names = [source.path.name for source in find_sources("*.jsonl")]
    assert names == ["a.jsonl", "a[1].jsonl", "b.jsonl"]
    assert find_sources("~/a[1].jsonl") == [Source(tmp_path / "a[1].jsonl", None)]
    with pytest.raises(DataError, match="a.jsonl is named twice"):
        find_sources(["a.jsonl", "*.jsonl"])


def test_pickles_and_notices_a_changed_file(tmp_path):
    write_m3it_jsonl(tmp_path / "a.jsonl", rows=2)
    examples = pickle.loads(pickle.dumps(JsonlExamples(find_sources(str(tmp_path / "a.jsonl")))))
    assert examples[1].texts[0].id == "toy-0-1"
    os.utime(tmp_path / "a.jsonl", (0, 0))
    with pytest.raises(DataError, match="changed after it was opened"):
        examples[0]


LARGE = base64.b64encode(bytes(range(256)) * 32).decode()  # so long that it is worth leaving out


@pytest.mark.parametrize(
    "row",
    [
        json.dumps(make_row(image_base64_str=LARGE, inputs="second?")),
        json.dumps(make_row(image_base64_str=[LARGE], inputs="second?")),
        json.dumps(make_row(image_base64_str=LARGE, inputs="second?"), separators=(",", ":")),
        json.dumps(make_row(image_base64_str=LARGE, inputs="second?")).replace("/", "\\/"),  # base64 in another form
        json.dumps({"other": LARGE[:-4], "more": LARGE[:-4] + "AAAA", **make_row(inputs="second?")}).replace(
            PIXEL, LARGE
        ),
    ],
)
def test_texts_about_one_image_are_read_with_it_once(tmp_path, monkeypatch, row):
    examples = open_rows(tmp_path, make_row(image_base64_str=LARGE), row, make_row(image_base64_str=LARGE, id="c"))
    assert len({examples.image_key(index) for index in range(3)}) == 1
    decoded = []
    real = rows_module.decode_base64
    monkeypatch.setattr(rows_module, "decode_base64", lambda text: decoded.append(text) or real(text))
    group = examples.read([0, 1, 2])
    assert len(decoded) == 1
    assert group.images == (bytes(range(256)) * 32,)
    assert [text.question for text in group.texts] == ["why?", "second?", "why?"]
    assert [text.id for text in group.texts] == [f"{tmp_path.name}/train/1", f"{tmp_path.name}/train/2", "c"]
    assert [text for index in (2, 1) for text in examples[index].texts] == [group.texts[2], group.texts[1]]


def test_images_of_several_rows_come_in_the_order_of_the_first(tmp_path):
    other = base64.b64encode(bytes(range(255, -1, -1)) * 32).decode()
    examples = open_rows(tmp_path, *[make_row(image_base64_str=[LARGE, other, LARGE])] * 2)
    group = examples.read([1, 0])
    assert group.images == tuple(map(base64.b64decode, (LARGE, other, LARGE)))
    assert [text.id.rpartition("/")[2] for text in group.texts] == ["2", "1"]


def test_what_is_cut_out_of_a_line_is_the_image_and_nothing_else():
    encoded = LARGE.encode()
    for before, after in (
        (b'{"a": "%s"}' % encoded, b'{"a": ""}'),
        (b'{"a": "x%s"}' % encoded, b'{"a": "x%s"}' % encoded),
        (b'{"a": "%sx"}' % encoded, b'{"a": "%sx"}' % encoded),
        (b'{"a": "%s"}' % encoded[:-4], b'{"a": "%s"}' % encoded[:-4]),
        (b"{}", b"{}"),
        (b"", b""),
    ):
        assert cut_images(before, [encoded]) == after
    assert cut_images(b'{"a": "aGVsbG8="}', [b"aGVsbG8="]) == b'{"a": "aGVsbG8="}'  # nothing is gained


def test_lines_of_any_length_are_read_at_their_positions(tmp_path, monkeypatch):
    rows = [make_row(inputs="q" * length) for length in (0, 1, 500, 3000)]
    monkeypatch.setattr(tables, "_LINE_BYTES", 128)
    examples = open_rows(tmp_path, *rows)
    assert [text.question for text in texts_of(examples)] == [row["inputs"] for row in rows]
    path = tmp_path / "last.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(rows[3]).encode())  # with a mark, and without a line break
    assert texts_of(JsonlExamples(find_sources(str(path))))[0].question == rows[3]["inputs"]

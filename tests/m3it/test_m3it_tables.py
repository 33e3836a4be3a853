"""Files of rows: every part of every form, and the uniform schema in all the forms in which people hold it."""

import base64
import json
import pickle
import random
import shutil
from pathlib import Path

import pytest

from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it.examples import IndexedExamples, JsonlExamples
from gitllm_plugin.m3it.rows import RowReader
from gitllm_plugin.m3it.scan import cut_file, open_split
from gitllm_plugin.m3it.tables import ArrowFolder, JsonlFile, ParquetFile, open_table
from gitllm_plugin.m3it.tree import find_sources, find_tree

SAVED = Path(__file__).parents[1] / "data" / "saved_by_datasets"
READER = RowReader("toy", "train", "uniform", "train")


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last_ending", [True, False])
def test_every_line_is_in_exactly_one_part_with_its_number(tmp_path, ending, last_ending):
    generator = random.Random(0)
    lines = [b"x" * generator.choice([0, 1, 5, 40, 300]) for _ in range(60)]
    lines[-1] = b"end"
    content = ending.join(lines) + (ending if last_ending else b"")
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    expected = [(number, line) for number, line in enumerate(lines, start=1) if line]
    for size in (1, 2, 3, 7, 64, 299, 10_000):
        found = []
        for part in cut_file(path, "a", READER, size):
            rows = list(JsonlFile(path).rows(part.start, part.end, part.first_line))
            found += [(row.line, row.content.strip()) for row in rows]
            assert all(JsonlFile(path).read(row.position) == row.content for row in rows)
        assert found == expected


def test_a_byte_order_mark_and_no_rows(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf{}\n")
    (tmp_path / "b.jsonl").write_bytes(b"")
    (row,) = JsonlFile(tmp_path / "a.jsonl").rows(0, 6, 1)
    assert row.content == JsonlFile(tmp_path / "a.jsonl").read(0) == b"{}\n"
    assert list(cut_file(tmp_path / "b.jsonl", "b", READER, 10)) == []


@pytest.mark.parametrize(
    "path, kind",
    [("dict/train", ArrowFolder), ("images", ArrowFolder), ("parquet/train-00000-of-00001.parquet", ParquetFile)],
)
def test_tables_in_parts_and_at_random(path, kind):
    rows = json.loads((SAVED / "rows.json").read_text(encoding="utf-8"))
    table = pickle.loads(pickle.dumps(open_table(SAVED / path)))
    assert isinstance(table, kind)
    assert table.end == len(rows)
    for size in (1, 10**6):
        ranges = table.cut(size)
        assert [start for start, _ in ranges] == [0, *(end for _, end in ranges[:-1])]
        assert ranges[-1][1] == len(rows)
        found = [row for start, end in ranges for row in table.rows(start, end, start + 1)]
        assert [row.line for row in found] == [1, 2, 3, 4, 5]
        assert [row.content["inputs"] for row in found] == [row["inputs"] for row in rows]
        assert [table.read(row.position) for row in reversed(found)] == [row.content for row in reversed(found)]
    assert len(open_table(SAVED / path).cut(1)) > 1


@pytest.mark.parametrize(
    "lay",
    [
        lambda root, rows: write_jsonl(root / "toy" / "train.jsonl", rows),
        lambda root, rows: shutil.copytree(SAVED / "dict", root / "toy"),
        lambda root, rows: shutil.copytree(SAVED / "images", root / "toy"),
        lambda root, rows: shutil.copytree(SAVED / "parquet", root / "toy"),
        lambda root, rows: shutil.copytree(SAVED / "parquet", root / "toy" / "train"),
    ],
    ids=["jsonl", "saved DatasetDict", "saved Dataset", "parquet", "folder of parquet"],
)
@pytest.mark.parametrize("name", ["toy", "clevr"])
def test_the_uniform_schema_gives_the_same_examples_in_every_form(tmp_path, lay, name):
    """Also for a configuration of the catalog, whose raw files are not there."""
    rows = json.loads((SAVED / "rows.json").read_text(encoding="utf-8"))
    (tmp_path / "tree").mkdir()
    lay(tmp_path / "tree", rows)
    (tmp_path / "tree" / "toy").rename(tmp_path / "tree" / name)
    tree = find_tree(tmp_path / "tree", [name], ["train"])
    assert not tree.missing
    examples = IndexedExamples(open_split(tree, tree.splits[0], tmp_path / "index"))
    assert len(examples) == len(rows)
    for index, row in enumerate(rows):
        (example,) = examples[index].texts
        assert (example.id, example.config) == (f"{name}/train/{index + 1}", name)
        assert (example.instruction, example.question) == (row["instruction"], row["inputs"])
        assert (example.answers, list(examples[index].images)) == ((row["outputs"],), decode(row))


@pytest.mark.parametrize("storage", ["parquet/*.parquet", "dict/train", "images"])
def test_files_that_a_configuration_names_may_be_any_of_them(storage):
    rows = json.loads((SAVED / "rows.json").read_text(encoding="utf-8"))
    examples = JsonlExamples(find_sources({"toy": str(SAVED / storage)}))
    assert [list(group.images) for group in examples] == [decode(row) for row in rows]


def write_jsonl(path: Path, rows: list) -> None:
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def decode(row: dict) -> list[bytes]:
    return [base64.b64decode(text) for text in row["image_base64_str"]]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.parquet", b"PAR1 no", "a.parquet is not a parquet file .* Download or convert it again"),
        ("a/state.json", b"{}", "state.json is not what Dataset.save_to_disk writes .*KeyError: '_data_files'"),
        ("a/state.json", b'{"_data_files": [], "_indices_files": [1]}', "with indices by an old version"),
    ],
)
def test_tables_that_are_none(tmp_path, name, content, message):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_table(path if path.suffix == ".parquet" else path.parent).files and open_table(path).end  # noqa: B018


def test_an_arrow_file_that_is_none(tmp_path):
    shutil.copytree(SAVED / "images", tmp_path / "a")
    (tmp_path / "a" / "data-00000-of-00001.arrow").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="data-00000-of-00001.arrow is not an Arrow file"):
        _ = open_table(tmp_path / "a").end


def test_a_tree_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="there is no folder .*nowhere"):
        find_tree(tmp_path / "nowhere", ["coco"])
    with pytest.raises(DataError) as caught:
        find_tree(tmp_path, ["coco", "mine"], ["train"])
    for said in (
        f"coco/train: {tmp_path}/data/captioning/coco/train.jsonl",
        f"mine: {tmp_path}/mine has no split",
        "Expected data/<category>/<folder>/",
    ):
        assert said in str(caught.value)


def test_two_files_for_one_wildcard(tmp_path):
    folder = tmp_path / "data" / "captioning" / "image_paragraph_captioning"
    folder.mkdir(parents=True)
    for name in ("a_train.jsonl", "b_train.jsonl"):
        (folder / name).write_text("{}\n")
    with pytest.raises(DataError, match="2 files match .*: a_train.jsonl, b_train.jsonl. Keep one of them"):
        find_tree(tmp_path, ["image-paragraph-captioning"], ["train"])


def test_instructions_that_are_none(tmp_path):
    folder = tmp_path / "data" / "captioning" / "coco"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text("{}\n")
    assert find_tree(tmp_path, ["coco"], ["train"]).missing == (f"coco/train: {folder}/instructions.json",)
    for content, message in (("[", "is not JSON"), ("{}", "is not a list of texts"), ('["a", ""]', "is not a list")):
        (folder / "instructions.json").write_text(content)
        with pytest.raises(DataError, match=message):
            find_tree(tmp_path, ["coco"], ["train"])

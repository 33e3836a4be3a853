"""One's own pictures: tables become rows that the data set opens, and what is wrong is said with its line."""

import csv
import json
import re

import pytest
from PIL import Image

from gitllm_plugin.cli.main import main
from gitllm_plugin.errors import ConfigError, DataError, StorageError
from gitllm_plugin.m3it.examples import JsonlExamples
from gitllm_plugin.m3it.from_table import FromTable, convert_table, parse_columns
from gitllm_plugin.m3it.images import decode_image
from gitllm_plugin.m3it.tree import find_sources


@pytest.fixture
def folder(tmp_path):
    """Forty small pictures, all different."""
    for index in range(40):
        Image.new("RGB", (30, 20), (index * 6, 100, 50)).save(tmp_path / f"{index}.png")
    return tmp_path


def write(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


def examples(path):
    """Images and text of each row."""
    return [(group.images, *group.texts) for group in JsonlExamples(find_sources(str(path)))]


def test_a_table_becomes_rows(folder):
    rows = [
        {"image": "1.png", "question": "what color?", "answer": "green, mostly", "instruction": ""},
        {"image": "2.png", "question": "", "answer": 'a "field"', "instruction": ""},
        {
            "image": "2.png|3.png",
            "question": "which is lighter?",
            "answer": "right|the right one",
            "instruction": "Say.",
        },
    ]
    table = write(folder / "mine.csv", rows)
    assert convert_table(table, folder / "out", FromTable()) == {"train": 3}
    assert [path.name for path in (folder / "out").iterdir()] == ["train.jsonl"]
    (first_images, first), (_, second), (third_images, third) = examples(folder / "out" / "train.jsonl")
    assert (first.instruction, first.question) == ("Answer the question about the image.", "what color?")
    assert first.answers == ("green, mostly",) and first.config == "mine" and first.id == "2"
    assert first_images == ((folder / "1.png").read_bytes(),)
    assert (second.instruction, second.question, second.answers) == ("Describe the picture.", "", ('a "field"',))
    assert third.instruction == "Say." and third.answers == ("right", "the right one") and len(third_images) == 2


def test_all_rows_about_a_picture_are_in_one_split(folder):
    rows = [{"image": f"{i % 40}.png", "question": f"number {i}?", "answer": str(i)} for i in range(120)]
    table = write(folder / "mine.tsv", rows)
    counts = convert_table(table, folder / "out", FromTable(val=0.25, test=0.25))
    assert sum(counts.values()) == 120 and set(counts) == {"train", "val", "test"}
    images = {split: {images[0] for images, _ in examples(folder / "out" / f"{split}.jsonl")} for split in counts}
    assert sum(map(len, images.values())) == 40 and len(set.union(*images.values())) == 40
    assert 3 <= len(images["val"]) <= 17 and 3 <= len(images["test"]) <= 17
    before = (folder / "out" / "test.jsonl").read_bytes()
    convert_table(table, folder / "out", FromTable(val=0.25, test=0.25))
    assert (folder / "out" / "test.jsonl").read_bytes() == before


def test_jsonl_with_lists_own_names_splits_and_another_folder(folder):
    (folder / "tables").mkdir()
    table = folder / "tables" / "mine.jsonl"
    rows = [
        {"file": ["4.png", "5.png"], "caption": ["two greens", "greens"], "split": "val", "id": 7},
        {"file": "6.png", "caption": "green", "split": "test", "id": 8},
    ]
    table.write_text("\n\n".join(map(json.dumps, rows)))
    settings = FromTable(images=folder, columns={"image": "file", "answer": "caption"})
    assert convert_table(table, folder / "out", settings) == {"val": 1, "test": 1}
    ((row_images, row),) = examples(folder / "out" / "val.jsonl")
    assert row.id == "7" and row.answers == ("two greens", "greens") and len(row_images) == 2


def test_large_pictures_are_made_smaller(folder):
    Image.linear_gradient("L").resize((300, 200)).save(folder / "large.png")
    table = write(folder / "mine.csv", [{"image": "large.png", "answer": "a"}, {"image": "1.png", "answer": "b"}])
    convert_table(table, folder / "out", FromTable(short_side=50))
    (large, _), (small, _) = examples(folder / "out" / "train.jsonl")
    assert decode_image(large[0]).size == (75, 50)
    assert small[0] == (folder / "1.png").read_bytes()


def test_everything_that_is_wrong_is_said_at_once_and_nothing_is_written(folder):
    (folder / "broken.png").write_bytes((folder / "1.png").read_bytes()[:40])
    (folder / "table.png").write_text("image,answer")
    rows = [
        {"image": "1.png", "answer": "fine", "id": "a", "split": ""},
        {"image": "missing.png", "answer": "x", "id": "b", "split": ""},
        {"image": "broken.png", "answer": "x", "id": "c", "split": ""},
        {"image": "2.png", "answer": " ", "id": "d", "split": ""},
        {"image": "2.png", "answer": "x", "id": "a", "split": ""},
        {"image": "2.png", "answer": "x", "id": "e", "split": "dev"},
        {"image": "2.png|table.png", "answer": "x", "id": "f", "split": ""},
    ]
    table = write(folder / "mine.csv", rows)
    with pytest.raises(DataError) as raised:
        convert_table(table, folder / "out", FromTable())
    said = str(raised.value)
    assert "6 rows cannot be used, nothing was written" in said
    for part in (
        "mine.csv:3: " + str(folder / "missing.png") + " cannot be read (No such file or directory)",
        f"mine.csv:4: {folder / 'broken.png'}: 40 bytes that are no image (",
        "mine.csv:5: the column 'answer' is empty",
        "mine.csv:6: the id 'a' is that of",
        f"mine.csv:8: {folder / 'table.png'}: 12 bytes that are no image (they start with b'image,an')",
        "mine.csv:7: the split is 'dev', expected one of train, val, test",
    ):
        assert part in said
    assert not list(folder.glob("out/*"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xlsx", "", "a spreadsheet's own file is not read; save the sheet as CSV (UTF-8)"),
        ("a.ods", "", "save the sheet as CSV"),
        ("a.csv.gz", "", "a table is a folder of pictures or a file that ends in .csv, .tsv, .jsonl"),
        ("a.csv", "", "has no rows: the file is empty"),
        ("a.csv", "\n \n\n", "has no rows: the file is empty"),
        ("a.json", '[{"image": "1.png", "answer": "x"},', "a.json: not JSON"),
        ("a.json", "[]", "a.json has no rows"),
        (
            "a.json",
            '{\n "images": [1],\n "annotations": [2]}',
            "images, entry 1",
        ),
        ("a.parquet", "", "is not a parquet file"),
        ("b.parquet", None, "there is no such file"),
        ("a.csv", "image,answer\n", "has no rows"),
        (
            "a.csv",
            "image:answer\n1.png:x\n",
            "The header is one cell: it may be divided by commas, tabs, semicolons, bars",
        ),
        ("a.csv", "1.png,a dog\n2.png,a cat\n", "no column 'image'; the columns are 1.png, a dog"),
        ("a.csv", "# mine\nimage,answer\n1.png,x\n", "no column 'image'; the columns are # mine"),
        ("a.csv", "picture,answer\n1.png,x\n", "no column 'image'; the columns are picture, answer. Name yours with"),
        ("a.jsonl", "[1]\n", "a JSON list where an object is expected"),
        ("a.jsonl", "{\n", "a.jsonl:1: not JSON"),
        ("nowhere/a.csv", None, "cannot be read as a table: there is no such file or folder"),
        ("nowhere", None, "cannot be read as a table: there is no such file or folder"),
    ],
)
def test_tables_that_cannot_be_read(folder, name, content, message):
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(DataError, match=re.escape(message)):
        convert_table(folder / name, folder / "out", FromTable())


def test_settings_that_cannot_be():
    with pytest.raises(ConfigError, match="columns are given for picture; a table has image, question"):
        FromTable(columns={"picture": "file"})
    with pytest.raises(ConfigError, match="their sum below 1"):
        FromTable(val=0.5, test=0.5)
    with pytest.raises(ConfigError, match="cannot be made 0 pixels large"):
        FromTable(short_side=0)
    with pytest.raises(ConfigError, match="there is no encoding 'windows'"):
        FromTable(encoding="windows")
    with pytest.raises(ConfigError, match="no name is given for answer"):
        FromTable(columns={"answer": ""})
    with pytest.raises(ConfigError, match="'caption' is not COLUMN=NAME"):
        parse_columns(["caption"])
    with pytest.raises(ConfigError, match="image is given twice, as 'a' and 'b'"):
        parse_columns(["image=a", "image=b"])


def test_nothing_of_what_is_there_is_replaced_by_halves(folder):
    table = write(folder / "train.jsonl.csv", [{"image": "1.png", "answer": "x"}])
    lines = folder / "train.jsonl"
    lines.write_text('{"image": "1.png", "answer": "x"}\n')
    with pytest.raises(ConfigError, match="would be replaced by what is made of it"):
        convert_table(lines, folder, FromTable())
    (folder / "file").write_text("")
    with pytest.raises(StorageError, match="file cannot be written: Not a directory"):
        convert_table(table, folder / "file", FromTable())
    notes = []
    (folder / "out").mkdir()
    (folder / "out" / "val.jsonl").write_text("before\n")
    assert convert_table(table, folder / "out", tell=notes.append) == {"train": 1}
    assert (folder / "out" / "val.jsonl").read_text() == "before\n"
    assert [note for note in notes if "val.jsonl is of an earlier conversion" in note]
    with pytest.raises(DataError):
        convert_table(write(folder / "b.csv", [{"image": "none.png", "answer": "x"}]), folder / "out")
    assert len(examples(folder / "out" / "train.jsonl")) == 1


def test_notes_are_warnings_unless_someone_listens(folder):
    write(folder / "mine.csv", [{"image": "1.png", "answer": "a", "author": "me"}])
    with pytest.warns(UserWarning, match="columns that are not read: 'author'"):
        convert_table(folder / "mine.csv", folder / "out")


def test_the_command(folder, capsys):
    write(folder / "mine.csv", [{"file": "1.png", "answer": "a"}])
    command = ["m3it", "from-csv", str(folder / "mine.csv"), str(folder / "out")]
    assert main([*command, "--columns", "image=file"]) == 0
    assert capsys.readouterr().out == f"train: 1 rows in {folder / 'out' / 'train.jsonl'}\n"
    assert main(command) == 2
    assert "there is no column 'image'" in capsys.readouterr().err
    rows = [{"image": f"{i}.png", "answer": "a", "source": "web"} for i in range(40)]
    write(folder / "mine.csv", rows)
    assert main([*command, "--val", "0.3"]) == 0
    out, err = capsys.readouterr()
    counts = [len((folder / "out" / f"{split}.jsonl").read_text().splitlines()) for split in ("train", "val")]
    assert sum(counts) == 40 and out.splitlines()[-1] == "all: 40 rows"
    read = "image, question, answer, rejected, instruction, id, split"
    assert err == f"note: {folder / 'mine.csv'}: columns that are not read: 'source'; read are {read}\n"


def test_what_it_made_is_checked_as_it_lies_there(folder, capsys):
    write(folder / "mine.csv", [{"image": "1.png", "answer": "a"}, {"image": "2.png", "answer": "b"}])
    made = folder / "coco"  # as a configuration of the catalog, of which it is none
    assert main(["m3it", "from-csv", str(folder / "mine.csv"), str(made)]) == 0
    assert main(["m3it", "check", str(made)]) == 0
    assert "train.jsonl" not in capsys.readouterr().err
    assert main(["m3it", "shard", str(made), str(folder / "shards")]) == 0
    for asked in (["--configs", "coco"], ["--configs", "mine"], ["--preset", "core"]):
        capsys.readouterr()
        assert main(["m3it", "check", str(made), *asked]) == 2
        told = capsys.readouterr().err
        assert f"{made} holds rows itself" in told and "leave --preset and --configs out" in told
        assert len(told.splitlines()) < 4
    assert main(["m3it", "check", str(folder), "--configs", "coco", "--splits", "train"]) == 1  # the catalog's


@pytest.mark.parametrize(
    ("begin", "said"),
    [
        (b"PK\x03\x04\x14\x00\x06\x00\xdb\xff", "a zip file, as spreadsheets"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\x00", "an old spreadsheet"),
        (b"\x1f\x8b\x08\x00", "compressed \\(gzip\\): unpack it"),
        (b"PAR1\x15\x04", "a parquet file"),
        (b"%PDF-1.7", "a PDF"),
    ],
)
def test_what_is_no_text_is_called_what_it_is(folder, begin, said):
    for name in ("mine.csv", "mine.tsv", "mine.jsonl"):
        (folder / name).write_bytes(begin)
        with pytest.raises(DataError, match=f"{name} is not text but {said}"):
            convert_table(folder / name, folder / "out")
        with pytest.raises(DataError, match=f"{name} is no file of rows but {said}"):
            find_sources(str(folder / name))


@pytest.mark.parametrize("name", ["mine.csv", "two words.TSV", "sheet.xlsx"])
def test_a_table_in_the_place_of_rows_is_told_in_one_line(folder, name):
    (folder / name).write_text("image,answer\n" + "1.png,a\n" * 500)
    with pytest.raises(DataError, match="gitllm m3it from-csv") as raised:
        find_sources([str(folder / name)])
    assert len(str(raised.value).splitlines()) == 2

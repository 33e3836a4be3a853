"""Data sets as the hub has them, made by the library itself: parquet, saved folders, streams; pictures in the data."""

import io
import json
import sys
import tracemalloc
from pathlib import Path

import orjson
import pybase64
import pytest
from PIL import Image

from gitllm_plugin.cli.main import main
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.m3it.examples import JsonlExamples
from gitllm_plugin.m3it.from_table import FromTable, convert_dataset
from gitllm_plugin.m3it.tree import find_sources

pyarrow = pytest.importorskip("pyarrow")
TALK = (("What is it?", "A boat."), ("Which color?", "Red."))


def png(color, size=(30, 20)):
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


COLORS = ["red", "green", "blue", "teal", "navy", "olive"]
PICTURES = [png(color) for color in COLORS]


def mapping(content):
    return {"bytes": content, "path": "a.png"}


def cauldron(picture):
    """As HuggingFaceM4/the_cauldron has rows."""
    texts = [{"user": asked, "assistant": said, "source": "made"} for asked, said in TALK]
    return {"images": [mapping(picture)], "texts": texts}


def messages(picture):
    """As trl's data sets of pictures have rows."""
    said = [
        {"role": role, "content": [{"type": "text", "text": words}]}
        for turn in TALK
        for role, words in zip(("user", "assistant"), turn, strict=True)
    ]
    said[0]["content"].insert(0, {"type": "image", "text": None})
    return {"messages": said, "images": [mapping(picture)]}


def sharegpt(picture):
    said = [{"from": who, "value": words} for turn in TALK for who, words in zip(("human", "gpt"), turn, strict=True)]
    said[0]["value"] = f"<image>\n{said[0]['value']}"
    return {"conversations": said, "image": mapping(picture)}


def write(path, rows, classes=None):
    """Write parquet as the hub has it."""
    import pyarrow.parquet as parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist(rows)
    if classes:
        features = {"label": {"names": classes, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, path, row_group_size=4)
    return path


def rows_of(path):
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def texts_of(path, **settings):
    return [text for group in JsonlExamples(find_sources(str(path)), **settings) for text in group.texts]


@pytest.mark.parametrize("form", [cauldron, messages, sharegpt])
def test_conversations_with_pictures_in_the_data(form, tmp_path):
    write(tmp_path / "set" / "train-00000-of-00001.parquet", [form(picture) for picture in PICTURES])
    assert convert_dataset(str(tmp_path / "set"), tmp_path / "out") == {"train": 6}
    rows = rows_of(tmp_path / "out" / "train.jsonl")
    assert [pybase64.b64decode(row["image_base64_str"]) for row in rows] == PICTURES
    texts = texts_of(tmp_path / "out" / "train.jsonl")
    assert [(text.question, text.answers[0], text.turns) for text in texts[:2]] == [
        (TALK[0][0], TALK[0][1], ()),
        (TALK[1][0], TALK[1][1], (TALK[0],)),
    ]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["train.jsonl"]


def test_splits_are_those_of_the_files(tmp_path):
    for name, colors in (("train-00000-of-00002", COLORS[:2]), ("train-00001-of-00002", COLORS[2:4])):
        write(tmp_path / "data" / f"{name}.parquet", [{"picture": png(c), "caption": c} for c in colors])
    write(tmp_path / "data" / "validation-00000-of-00001.parquet", [{"picture": png("navy"), "caption": "navy"}])
    columns = FromTable(columns={"image": "picture", "answer": "caption"})
    assert convert_dataset(str(tmp_path / "data"), tmp_path / "a", columns) == {"train": 4, "val": 1}
    assert [row["outputs"] for row in rows_of(tmp_path / "a" / "train.jsonl")] == COLORS[:4]
    one = FromTable(columns=columns.columns, split="train", val=0.5)
    assert sum(convert_dataset(str(tmp_path / "data"), tmp_path / "b", one).values()) == 4
    with pytest.raises(DataError, match="no split 'dev'; it has 'train', 'validation'"):
        convert_dataset(str(tmp_path / "data"), tmp_path / "c", FromTable(columns=columns.columns, split="dev"))


def test_numbers_of_classes_become_their_names(tmp_path):
    rows = [{"image": mapping(png(color)), "label": number % 2} for number, color in enumerate(COLORS)]
    write(tmp_path / "animals.parquet", rows, classes=["cat", "dog"])
    convert_dataset(str(tmp_path / "animals.parquet"), tmp_path / "out", FromTable(columns={"answer": "label"}))
    assert [row["outputs"] for row in rows_of(tmp_path / "out" / "train.jsonl")] == ["cat", "dog"] * 3


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"image": mapping(b"no picture"), "answer": "a"}, "image"),
        ({"image": {"bytes": None, "path": "nowhere.png"}, "answer": "a"}, "nowhere.png"),
        ({"image": None, "answer": "a"}, "'image' is empty"),
        ({"image": mapping(png("red")), "answer": ""}, "'answer' is empty"),
        ({**messages(png("red")), "images": []}, "has 1 times <image>, and the row 0 images"),
        ({"images": [mapping(png("red"))], "texts": [{"user": "a?", "assistant": ""}]}, "turn 2 of 'texts' is empty"),
    ],
)
def test_what_cannot_be_used_is_told_with_its_row(row, told, tmp_path):
    good = {key: value for key, value in row.items() if key not in ("image", "images", "answer", "texts")}
    if "messages" in row:
        good = messages(png("blue"))
    elif "texts" in row:
        good = cauldron(png("blue"))
    else:
        good = {"image": mapping(png("blue")), "answer": "b"}
    write(tmp_path / "bad.parquet", [good, row])
    with pytest.raises(DataError, match=rf"bad.parquet:2: (.|\n)*{told}"):
        convert_dataset(str(tmp_path / "bad.parquet"), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_conversations_without_a_picture(tmp_path):
    talk = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello."}]
    rows = [{"image": mapping(p), "messages": talk} for p in PICTURES[:2]] + [{"image": None, "messages": talk}] * 3
    write(tmp_path / "mixed.parquet", rows)
    with pytest.raises(DataError, match=r"3 rows cannot be used(.|\n)*--allow-text-only"):
        convert_dataset(str(tmp_path / "mixed.parquet"), tmp_path / "out")
    notes = []
    settings = FromTable(text_only=True, val=0.3)
    counts = convert_dataset(str(tmp_path / "mixed.parquet"), tmp_path / "out", settings, notes.append)
    assert sum(counts.values()) == 5
    assert "rows without an image: 3; training takes them with allow_text_only: true" in notes
    found = [text for split in counts for text in texts_of(tmp_path / "out" / f"{split}.jsonl", allow_text_only=True)]
    assert len(found) == 5 and {text.answers for text in found} == {("Hello.",)}


def test_what_it_is_not_is_told(tmp_path, monkeypatch):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "table.csv").write_text("image,answer\n")
    for name, told in (
        (tmp_path / "pictures", "without parquet files"),
        (tmp_path / "table.csv", "gitllm m3it from-csv"),
        (tmp_path / "none" / "at all", "there is no file or folder"),
    ):
        with pytest.raises(DataError, match=told):
            convert_dataset(str(name), tmp_path / "out")
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install \"gitllm-plugin\[datasets\]\""):
        convert_dataset("someone/pictures", tmp_path / "out")


def test_pictures_are_not_kept_in_memory(tmp_path):
    """Sixty megabytes of pictures, of which few are in memory at a time."""
    import random

    noise = random.Random(0)
    pictures = []
    for number in range(60):
        buffer = io.BytesIO()
        Image.frombytes("RGB", (600, 580), noise.randbytes(600 * 580 * 3)).save(buffer, "PNG", compress_level=0)
        pictures.append({"image": mapping(buffer.getvalue()), "answer": str(number)})
    write(tmp_path / "large.parquet", pictures)
    size = sum(len(row["image"]["bytes"]) for row in pictures)
    del pictures
    tracemalloc.start()
    assert convert_dataset(str(tmp_path / "large.parquet"), tmp_path / "out") == {"train": 60}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size > 60e6 and peak < 0.8 * size


def test_the_command(tmp_path, capsys):
    write(tmp_path / "set" / "test-00000-of-00001.parquet", [cauldron(picture) for picture in PICTURES])
    assert main(["m3it", "from-dataset", str(tmp_path / "set"), str(tmp_path / "out"), "--split", "test"]) == 0
    assert "train: 6 rows" in capsys.readouterr().out
    assert main(["m3it", "check", str(tmp_path / "out")]) == 0


# ---------------------------------------------------------------- made by the library


@pytest.fixture
def datasets():
    return pytest.importorskip("datasets", reason="pip install 'gitllm-plugin[datasets]'")


def pictures_of(datasets, **columns):
    """A data set of the library with pictures decoded by it."""
    count = len(COLORS)
    made = datasets.Dataset.from_dict({"image": [Image.new("RGB", (30, 20), c) for c in COLORS], **columns})
    assert len(made) == count and isinstance(made.features["image"], datasets.Image)
    return made


@pytest.mark.parametrize("how", ["saved", "saved splits", "parquet", "streamed"])
def test_sets_that_the_library_wrote(how, datasets, tmp_path, monkeypatch):
    made = pictures_of(datasets, question=["which color?"] * 6, label=[0, 1, 2, 0, 1, 2])
    made = made.cast_column("label", datasets.ClassLabel(names=["warm", "green", "cold"]))
    name, expected = str(tmp_path / "set"), {"train": 6}
    if how == "saved":
        made.save_to_disk(name)
    elif how == "saved splits":
        datasets.DatasetDict({"train": made.select(range(4)), "test": made.select(range(4, 6))}).save_to_disk(name)
        expected = {"train": 4, "test": 2}
    else:
        Path(name).mkdir()
        made.to_parquet(f"{name}/train-00000-of-00001.parquet")
    if how == "streamed":
        load = datasets.load_dataset
        files = {"train": f"{name}/train-00000-of-00001.parquet"}
        monkeypatch.setattr(
            datasets, "load_dataset", lambda name, subset, streaming: load("parquet", data_files=files, streaming=True)
        )
        name = "someone/pictures"
    settings = FromTable(columns={"answer": "label"})
    assert convert_dataset(name, tmp_path / "out", settings) == expected
    rows = [row for split in expected for row in rows_of(tmp_path / "out" / f"{split}.jsonl")]
    assert [row["outputs"] for row in rows] == ["warm", "green", "cold"] * 2
    for row, color in zip(rows, COLORS, strict=True):
        picture = Image.open(io.BytesIO(pybase64.b64decode(row["image_base64_str"])))
        assert picture.size == (30, 20) and picture.getpixel((3, 3)) == Image.new("RGB", (1, 1), color).getpixel((0, 0))


def test_the_cauldrons_form_of_the_library(datasets, tmp_path):
    features = datasets.Features(
        {
            "images": [datasets.Image()],
            "texts": [{k: datasets.Value("string") for k in ("user", "assistant", "source")}],
        }
    )
    rows = [{**cauldron(None), "images": [Image.new("RGB", (30, 20), color)]} for color in COLORS]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(str(tmp_path / "set"))
    assert convert_dataset(str(tmp_path / "set"), tmp_path / "out") == {"train": 6}
    assert [text.turns for text in texts_of(tmp_path / "out" / "train.jsonl")][:2] == [(), (TALK[0],)]


def test_a_name_that_is_not_there_is_told(datasets, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="the data set someone/nothing cannot be read"):
        convert_dataset("someone/nothing", tmp_path / "out")

"""What a table or a folder names as pictures, and which split they are in."""

import json
import random
import shutil

import pytest
from PIL import Image

from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.m3it.examples import JsonlExamples
from gitllm_plugin.m3it.from_table import FromTable, convert_table
from gitllm_plugin.m3it.tree import find_sources


def paint(path, number, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", size, (number % 256, number // 256, 7))
    picture.save(path)
    return path


def convert(table, out, **settings):
    """Split of each answer; and the notes."""
    notes = []
    shutil.rmtree(out, ignore_errors=True)
    counts = convert_table(table, out, FromTable(**settings), notes.append)
    rows = [(json.loads(line), path.stem) for path in out.glob("*.jsonl") for line in path.open()]
    assert len(rows) == sum(counts.values()) == len(JsonlExamples(find_sources(str(out / "*.jsonl"))))
    return {row["outputs"]: split for row, split in rows}, notes


def refused(table, out, **settings):
    with pytest.raises(DataError) as raised:
        convert_table(table, out, FromTable(**settings), lambda note: None)
    assert not list(out.glob("*"))
    return str(raised.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("https://example.org/a.png", "pictures are not fetched; download them first and name the files"),
        ("s3://bucket/a.png", "pictures are not fetched; download them first"),
        ("HTTP://example.org/a b.png", "pictures are not fetched; download them first"),
        ("file:///home/a.png", "write its path, without file://"),
        ("data:image/png;base64,iVBO", "a picture in the table itself is not read; write it to a file"),
        ("sub", "sub cannot be read (it is a folder)"),
        ("none.png", "none.png cannot be read (No such file or directory)"),
        ("a.png/b.png", "cannot be read (Not a directory)"),
        ("x" * 5000, "... cannot be read (File name too long)"),
        ("~nobody-here/a.png", "cannot be read (No such file or directory)"),
        ("/dev/null", "/dev/null cannot be read (it is no ordinary file)"),
        ("new\nline.png", "new\\nline.png' cannot be read"),
        ("half.png", "half.png: the image is broken"),
        ("words.png", "words.png: 5 bytes that are no image"),
    ],
)
def test_what_is_no_picture(tmp_path, name, said):
    picture = paint(tmp_path / "a.png", 1)
    (tmp_path / "half.png").write_bytes(picture.read_bytes()[:-30])
    (tmp_path / "words.png").write_bytes(b"words")
    (tmp_path / "sub").mkdir()
    table = tmp_path / "t.jsonl"
    table.write_text("".join(json.dumps({"image": each, "answer": "x"}) + "\n" for each in ("a.png", name)))
    error = refused(table, tmp_path / "out")
    assert "1 row cannot be used" in error and "t.jsonl:2: " in error and said in error
    assert len(error) < 1000


def test_where_pictures_may_lie(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "tables").mkdir()
    for number, name in enumerate(("tables/in/a.png", "b.png", "home/c.png", "tables/~d.png", "tables/back\\e.png")):
        paint(tmp_path / name, number)
    names = ["in\\a.png", "../b.png", "~/c.png", "~d.png", "back\\e.png", str(tmp_path / "b.png")]
    table = tmp_path / "tables" / "t.csv"
    table.write_text("image,answer\n" + "".join(f"{name},{number}\n" for number, name in enumerate(names)))
    splits, _ = convert(table, tmp_path / "out")
    assert len(splits) == len(names)


def write_rows(path, rows):
    lines = [json.dumps({"image": names, "answer": answer}) for names, answer in rows]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def pictures(tmp_path):
    return [paint(tmp_path / f"{number}.png", number).name for number in range(300)]


def test_a_picture_keeps_its_split(tmp_path, pictures):
    table = write_rows(tmp_path / "t.jsonl", [(name, name) for name in pictures])
    shares = {"val": 0.2, "test": 0.1}
    splits, notes = convert(table, tmp_path / "out", **shares)
    counts = [list(splits.values()).count(split) for split in ("train", "val", "test")]
    assert notes == [] and 180 < counts[0] < 240 and 35 < counts[1] < 85 and 12 < counts[2] < 50
    assert convert(table, tmp_path / "out", short_side=16, **shares)[0] == splits
    # Other rows, another order, questions about the same pictures, other names of the same files.
    some = pictures[::3]
    random.Random(1).shuffle(some)
    fewer = write_rows(tmp_path / "u.jsonl", [(name, name) for name in some])
    assert convert(fewer, tmp_path / "out", **shares)[0] == {name: splits[name] for name in some}
    for name in some:
        shutil.copy(tmp_path / name, tmp_path / f"copy-{name}")
    more = write_rows(
        tmp_path / "v.jsonl", [(f"copy-{name}", f"copy-{name}") for name in some] + [(n, n) for n in some]
    )
    found, _ = convert(more, tmp_path / "out", **shares)
    assert all(found[name] == found[f"copy-{name}"] == splits[name] for name in some)


def test_splits_are_those_that_earlier_versions_chose(tmp_path):
    """One picture a row, and rows of several that no other row shows: as version 0.1.0 dealt these bytes."""
    for number in range(36):
        (tmp_path / f"{number}.ppm").write_bytes(b"P6 1 1 255\n" + bytes([number, 20, 30]))
    rows = [(f"{number}.ppm", str(number)) for number in range(20)]
    rows += [([f"{number}.ppm", f"{number + 1}.ppm"], str(number)) for number in range(20, 36, 2)]
    splits, _ = convert(write_rows(tmp_path / "t.jsonl", rows), tmp_path / "out", val=0.3, test=0.3)
    assert "".join(splits[answer][1] for _, answer in rows) == "ararereareeraareerrararrerer"  # second letters


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("form", ["pairs", "chains", "stars"])
def test_rows_that_share_pictures_share_a_split(tmp_path, pictures, form, seed):
    rng = random.Random(seed)
    names = pictures[:]
    rng.shuffle(names)
    rows = [(name, f"{name} alone") for name in names[::2]]
    if form == "pairs":
        rows += [(names[i : i + 2], f"{i}") for i in range(0, len(names), 2)]
    elif form == "chains":
        rows += [(names[i : i + 2], f"{i}") for i in range(len(names) - 1) if i % 5 != 4]
    else:
        rows += [([names[i - i % 4], names[i]], f"{i}") for i in range(len(names)) if i % 4]
    rng.shuffle(rows)
    table = write_rows(tmp_path / "t.jsonl", rows)
    splits, _ = convert(table, tmp_path / "out", val=0.25, test=0.25)
    where = {}
    for shown, answer in rows:
        for name in [shown] if isinstance(shown, str) else shown:
            where.setdefault(name, set()).add(splits[answer])
    assert {len(found) for found in where.values()} == {1}
    shares = [sum(found == {split} for found in where.values()) / len(where) for split in ("train", "val", "test")]
    assert 0.3 < shares[0] < 0.7 and 0.1 < shares[1] < 0.42 and 0.1 < shares[2] < 0.42
    # Questions about some of the pictures of a row change nothing, and neither does the order.
    more = [*rows[::-1], *((name, f"{name} more") for name in names)]
    assert convert(write_rows(table, more), tmp_path / "out", val=0.25, test=0.25)[0].items() >= splits.items()


def test_pictures_in_several_splits_of_the_column(tmp_path, pictures):
    table = tmp_path / "t.csv"
    table.write_text(
        "image,answer,split\n0.png,a,train\n0.png,b,val\n1.png,c,test\n1.png|2.png,d,\n2.png,e,\n3.png,f,\n"
    )
    splits, notes = convert(table, tmp_path / "out")
    assert splits == dict(a="train", b="val", c="test", d="test", e="test", f="train")
    assert notes == ["pictures in more than one split, as they were given: 1"]
    table.write_text(table.read_text() + "0.png,g,\n")
    assert "t.csv:8: it has no split, and rows that share its pictures are in train and val" in refused(
        table, tmp_path / "out2"
    )


def test_splits_that_come_out_empty_are_told(tmp_path, pictures):
    table = write_rows(tmp_path / "t.jsonl", [(name, name) for name in pictures[:3]])
    splits, notes = convert(table, tmp_path / "out", val=0.01, test=0.01)
    empty = [note.split()[0] for note in notes]
    assert empty == [split for split in ("val", "test") if split not in splits.values()] != []
    assert all("Take more pictures or a larger share, or say it: a column 'split'" in note for note in notes)
    _, notes = convert(table, tmp_path / "out", val=0.999)
    assert [note.split()[0] for note in notes] == ["train"]
    chain = write_rows(tmp_path / "u.jsonl", [(pictures[i : i + 2], str(i)) for i in range(20)])
    _, notes = convert(chain, tmp_path / "out", val=0.3, test=0.3)
    assert len(notes) == 3 and "of which 21 are linked by rows that show several" in notes[0]
    assert "21 of 21 pictures are linked" in notes[2]


def test_rows_that_stand_twice_are_told_and_kept(tmp_path, pictures):
    table = tmp_path / "t.csv"
    table.write_text("image,question,answer\n0.png,a?,b\n1.png,a?,b\n0.png,a?,b\n0.png,a?,c\n")
    notes = []
    assert convert_table(table, tmp_path / "out", FromTable(), notes.append) == {"train": 4}
    assert notes == [f"rows that stand twice, and are kept: 1, the first: {table}:4 is {table}:2 again"]


def test_folders_named_after_what_they_show(tmp_path):
    for number, name in enumerate(("cat/1.png", "cat/2.JPG", "sea lion/1.png", "dog/1.webp")):
        paint(tmp_path / "in" / name, number)
    (tmp_path / "in" / ".hidden.png").write_bytes(b"")
    notes = []
    assert convert_table(tmp_path / "in", tmp_path / "out", None, notes.append) == {"train": 4}
    rows = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").open()]
    assert [(row["id"], row["outputs"], row["config"]) for row in rows] == [
        ("cat/1.png", "cat", "in"),
        ("cat/2.JPG", "cat", "in"),
        ("dog/1.webp", "dog", "in"),
        ("sea lion/1.png", "sea lion", "in"),
    ]
    assert notes == [f"{tmp_path / 'in'}: 3 kinds, the names of its folders: cat 2, dog 1, sea lion 1"]
    assert rows[0]["instruction"] == "Describe the picture."


@pytest.mark.parametrize("kind", ["cat", "Ærø & ø", "black and white"])
def test_a_single_kind_is_told(kind, tmp_path):
    for number in range(3):
        paint(tmp_path / "in" / kind / f"{number}.png", number)
    _, notes = convert(tmp_path / "in", tmp_path / "out")
    assert len(notes) == 1 and f"in: all pictures are of one kind, {kind} 3: nothing else can be learnt" in notes[0]


def test_of_many_kinds_the_most_frequent_are_named(tmp_path):
    for number in range(15):
        paint(tmp_path / "in" / f"kind{number:02}" / "a.png", number)
    paint(tmp_path / "in" / "kind14" / "b.png", 15)
    _, (note,) = convert(tmp_path / "in", tmp_path / "out")
    assert "15 kinds, the names of its folders: kind14 2, kind00 1, " in note and note.endswith("kind10 1 and 3 more")


def test_texts_beside_pictures(tmp_path):
    for number, name in enumerate(("a.png", "deep/er/b.jpg", "deep/c.d.png")):
        paint(tmp_path / "in" / name, number)
        (tmp_path / "in" / name).with_suffix(".txt").write_text(f"picture {number}, or a|b\n", encoding="utf-8-sig")
    for name in ("README.txt", "metadata.csv", "deep/clip.mp4"):
        (tmp_path / "in" / name).write_text("")
    splits, notes = convert(tmp_path / "in", tmp_path / "out")
    assert sorted(splits) == [f"picture {number}, or a|b" for number in range(3)]
    assert notes == [
        f"{tmp_path / 'in'}: files that are not read: 3 (1 of .csv, 1 of .mp4, 1 of .txt), the first: README.txt",
        f"{tmp_path / 'in'}: to use the table metadata.csv, give it in the folder's place",
    ]


def test_folders_that_are_splits(tmp_path):
    for number, name in enumerate(("train/cat/1.png", "train/dog/1.png", "val/cat/1.png")):
        paint(tmp_path / "classes" / name, number)
    _, notes = convert(tmp_path / "classes", tmp_path / "out")
    assert notes == [
        f"{tmp_path / 'classes'}: its folders are the splits train, val",
        f"{tmp_path / 'classes'}: 2 kinds, the names of its folders: cat 2, dog 1",
    ]
    assert {path.stem: len(path.open().readlines()) for path in (tmp_path / "out").glob("*")} == {"train": 2, "val": 1}
    for number, name in enumerate(("test/1.png", "val/1.png")):
        paint(tmp_path / "texts" / name, number).with_suffix(".txt").write_text(name)
    assert convert(tmp_path / "texts", tmp_path / "out2")[0] == {"test/1.png": "test", "val/1.png": "val"}
    for number, name in enumerate(("train/1.png", "plane/1.png")):
        paint(tmp_path / "things" / name, number)
    assert convert(tmp_path / "things", tmp_path / "out3")[0] == {"train": "train", "plane": "train"}


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("Train", "Valid", "Test"), ("train", "val", "test")),
        (("training", "validation", "testing"), ("train", "val", "test")),
        (("TRAIN", "dev"), ("train", "val")),
        (("train", "val", "valid"), ("train", "val", "val")),
    ],
)
def test_splits_by_the_names_that_people_give_them(folders, splits, tmp_path):
    for number, folder in enumerate(folders):
        paint(tmp_path / "in" / folder / f"kind {number}" / "1.png", number)
    found, notes = convert(tmp_path / "in", tmp_path / "out", val=0.1)
    assert found == {f"kind {number}": split for number, split in enumerate(splits)}
    assert len(notes) == 2 and "its folders are the splits" in notes[0]  # shares are not dealt, and no matter


@pytest.mark.parametrize(
    ("begin", "said"),
    [
        (b"", "1.png: the file is empty: no image. Copy it again"),
        (b"\0\0\0\x24ftypheic\0\0\0\0mif1heic", "1.png: an image in HEIC, as phones take it"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heic", "1.png: an image in HEIC, as phones take it"),
        (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2", "1.png: a video or HEIF"),
        (b"%PDF-1.7\n", "1.png: a PDF, no image"),
        (b"\n<!DOCTYPE html><html>", "1.png: a web page, no image"),
        (b"<?xml version='1.0'?>\n<!-- a -->\n<svg>", "1.png: a drawing in SVG"),
        (b"PK\3\4\x14\0", "1.png: a ZIP file"),
    ],
)
def test_what_is_often_found_in_the_place_of_a_picture_is_named(begin, said, tmp_path):
    for name in ("1.png", "2.png"):
        paint(tmp_path / "in" / "cat" / name, 1).write_bytes(begin + bytes(200 if begin else 0))
    paint(tmp_path / "in" / "dog" / "1.png", 1)
    error = refused(tmp_path / "in", tmp_path / "out")
    # Once for both, and each by its path alone.
    assert error.count("cat") == 2 and said.replace("1.png", "1.png, " + str(tmp_path / "in/cat/2.png")) in error


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (("a.png", "b.png", "c.png", "d.png", "e.png"), "c.png and 2 more: it lies in no folder that is named after"),
        (("pets/cat/1.png", "pets/dog/1.png"), "pets, which has folders of one kind each"),
        (("train/pets/cat/1.png", "val/pets/cat/1.png"), "train/pets, which has folders of one kind each"),
    ],
)
def test_what_is_wrong_with_all_is_said_once(files, said, tmp_path):
    for number, name in enumerate(files):
        paint(tmp_path / "in" / name, number)
    error = refused(tmp_path / "in", tmp_path / "out")
    assert said in error and f"{len(files)} rows cannot be used" in error
    assert len(error.splitlines()) <= 1 + len({name.rpartition("/")[0] for name in files})


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (("cat/1.png", "top.png"), ["top.png: it lies in no folder that is named after"]),
        (("cat/1.png", "cat/old/2.png"), ["2.png: it lies 2 folders deep, and any of 'cat', 'old' may be"]),
        (
            ("a.png", "a.txt", "cat/1.png", "dog/1.png"),
            ["cat/1.png, ", "dog/1.png: no .txt lies beside it"],
        ),
        (
            ("a.png", "a.txt", "b.png", "b.TXT", "c.png"),
            ["1 row cannot", "c.png: no .txt lies beside it, as one does beside others (2)"],
        ),
        (("a.png", "a.txt=", "b.png", "b.txt"), ["a.png: the column 'answer' is empty"]),
        (("a.png", "a.txt=\xe9", "b.png", "b.txt"), ["a.txt:1: byte 0xe9 is not utf-8"]),
        (("cat/1.png=", "dog/1.png"), ["1.png: the file is empty: no image"]),
        (("notes.txt",), ["holds no picture file"]),
        ((), ["holds no picture file"]),
    ],
)
def test_folders_that_are_neither(tmp_path, files, said):
    (tmp_path / "in").mkdir()
    for number, entry in enumerate(files):
        name, equals, content = entry.partition("=")
        if equals or name.lower().endswith(".txt"):
            (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
            (tmp_path / "in" / name).write_bytes(content.encode("latin-1") if equals else b"text")
        else:
            paint(tmp_path / "in" / name, number)
    error = refused(tmp_path / "in", tmp_path / "out")
    assert all(part in error for part in said), error


def test_a_folder_with_links_round_and_round_ends(tmp_path):
    paint(tmp_path / "in" / "cat" / "1.png", 1)
    paint(tmp_path / "elsewhere" / "2.png", 2)
    (tmp_path / "in" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in")
    splits, notes = convert(tmp_path / "in", tmp_path / "out")
    assert set(splits) == {"cat", "dog"} and "is a link to a folder that is read already" in notes[0]
    with pytest.raises(ConfigError, match="is a folder, which has no columns"):
        convert_table(tmp_path / "in", tmp_path / "out", FromTable(images=tmp_path))

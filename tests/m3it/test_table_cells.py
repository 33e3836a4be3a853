"""Every cell of a table arrives, or its row is named: quotes, delimiters, columns, encodings, JSON's values."""

import datetime
import json

import pytest
from PIL import Image

from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it.examples import JsonlExamples
from gitllm_plugin.m3it.from_table import FromTable, convert_table
from gitllm_plugin.m3it.tree import find_sources


@pytest.fixture
def folder(tmp_path):
    for name in ("p.png", "q.png", "r.png"):
        Image.new("RGB", (6, 5), (ord(name[0]), 9, 9)).save(tmp_path / name)
    return tmp_path


class Converted:
    """What came of a table: its texts, or the error; and the notes."""

    def __init__(self, folder, name, content, **settings):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        self.notes, self.error, self.texts = [], "", []
        try:
            self.counts = convert_table(folder / name, folder / "out", FromTable(**settings), self.notes.append)
        except DataError as error:
            self.error = str(error)
            assert not list(folder.glob("out/*"))
            return
        found = JsonlExamples(find_sources(str(folder / "out" / "*.jsonl")))
        assert len(found) == sum(self.counts.values()) and not found.problems
        self.texts = [(text.question, *text.answers) for group in found for text in group.texts]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("image,answer\np.png,red, white and blue\n", "t.csv:2: 3 cells where the header has 2"),
        ("image,answer\np.png,one\nq.png,two,\nr.png,three,x,,\n", "t.csv:4: 3 cells where the header has 2"),
        ("image,question,answer\np.png,who,a man\nq.png,a dog\n", "t.csv:3: 2 cells where the header has 3"),
        ("image,answer\np.png,a man\nwith a hat\nq.png,x\n", "t.csv:3: 1 cells where the header has 2"),
        ("image,answer,\np.png,sun, sea\n", "t.csv:2: 3 cells where the header has 2"),
        (
            "image,answer\n# from here on by hand\np.png,x\n",
            "t.csv:2: 1 cells where the header has 2: is a line break or",
        ),
    ],
)
def test_rows_with_other_cells_than_the_header(folder, content, said):
    assert f"1 row cannot be used, nothing was written:\n  {folder}/{said}" in Converted(folder, "t.csv", content).error


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            'image,answer\np.png,"a man\nq.png,a dog\n',
            "t.csv:2: a quote is opened and never closed, so that lines 2 to 3",
        ),
        (
            'image,answer\np.png,"a man\nq.png,a dog"\nr.png,x\n',
            "t.csv:2: the cell 'answer' holds what looks like another",
        ),
        (
            'image,answer\np.png,"a man\nq.png,"a dog"\n',
            "t.csv:2: text stands behind the quote that closes a cell (lines 2",
        ),
        (
            'image,answer\np.png,"big" man\nq.png,x\n',
            "t.csv:2: text stands behind the quote that closes a cell (in this",
        ),
        ('image,answer\n"p.png,a man\nq.png",a dog\n', "t.csv:2: the cell 'image' holds what looks like another row"),
        ('image,"answer\np.png,x\nq.png,y\n', "t.csv:1: a quote is opened and never closed"),
        (
            'question,answer,image\nwho?,"a man,p.png\nwhat?,a dog",q.png\n',
            "t.csv:2: the cell 'answer' holds what looks",
        ),
    ],
)
def test_quotes_that_swallow_text(folder, content, said):
    assert said in Converted(folder, "t.csv", content).error


def test_quotes_and_line_breaks_that_are_right(folder):
    found = Converted(
        folder,
        "t.csv",
        'image,answer\r\np.png,"a ""red"" car, parked"\r\nq.png, "two\nlines, or so"\r\n\r\nr.png,5" pipe\r\n,\r\n',
    )
    assert found.texts == [("", 'a "red" car, parked'), ("", "two\nlines, or so"), ("", '5" pipe')]
    assert found.notes == [f"{folder / 't.csv'}: rows without any text, passed over: 1"]
    assert (
        Converted(folder, "long.csv", "image,answer\np.png," + "word " * 100_000).texts[0][1].count("word") == 100_000
    )


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("image,answer,image", "'image' stands 2 times, as 'image' and 'image'"),
        ("image,answer,Answer ", "'answer' stands 2 times, as 'answer' and 'Answer '"),
        (
            "image,answr,x",
            "no column 'answer'; the columns are image, answr, x. Name yours with --columns answer=answr",
        ),
        ("image,answer,questions", "nothing reads the column 'questions'; did you mean 'question'?"),
        ("image,answer,Instrucion", "nothing reads the column 'Instrucion'; did you mean 'instruction'?"),
        ("image,answer,spilt", "nothing reads the column 'spilt'; did you mean 'split'?"),
        ("img,anwser,split", "no column 'image'; the columns are img, anwser, split. Name yours with --columns image="),
    ],
)
def test_names_of_columns_that_are_refused(folder, header, said):
    error = Converted(folder, "t.csv", f"{header}\np.png,x,\n").error
    assert said in error and "t.csv:1: " in error
    keys = [name for name in header.split(",") if name != "image" or header.count("image") == 1]
    row = json.dumps(dict(zip(keys, ("p.png", "x", ""), strict=False)))
    if len(keys) == 3:
        assert said in Converted(folder, "t.jsonl", row).error


@pytest.mark.parametrize(
    "header",
    [
        "Image,ANSWER,Question",
        " image , answer,question ",
        "image,answer\xa0,QUESTION",
        "\ufeff\ufeffimage,answer,question",
    ],
)
def test_names_of_columns_that_are_taken(folder, header):
    assert Converted(folder, "t.csv", f"{header}\np.png,x,why?\n").texts == [("why?", "x")]


def test_columns_that_nothing_reads_are_named(folder):
    found = Converted(folder, "t.csv", ",image,answer,author,question_id\n0,p.png,x,me,7\n")
    assert found.texts == [("", "x")]
    unread = "columns that are not read: one without a name, 'author', 'question_id'"
    read = "image, question, answer, rejected, instruction, id, split"
    assert found.notes == [f"{folder / 't.csv'}: {unread}; read are {read}"]
    rows = [{"image": "p.png", "answer": "x"}, {"image": "q.png", "answer": "y", "scores": [1, {"a": 2}]}]
    assert "'scores'" in Converted(folder, "t.jsonl", "\n".join(map(json.dumps, rows))).notes[0]


def test_names_that_were_given_have_to_be_there(folder):
    content = "image,answer,File\np.png,x,q.png\n"
    assert (
        "has no column of that name: question=ask"
        in Converted(folder, "t.csv", content, columns={"question": "ask"}).error
    )
    found = Converted(folder, "t.csv", content, columns={"image": "File"})
    assert found.texts and "not read: 'image'; read are File," in found.notes[0]
    both = '{"image": "p.png", "caption": "a", "Caption": "b"}'
    found = Converted(folder, "t.jsonl", both, columns={"answer": "Caption"})
    assert found.texts == [("", "b")] and "'caption'" in found.notes[0]


@pytest.mark.parametrize(("delimiter", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars"), (",", "commas")])
@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_the_header_says_what_divides_cells(folder, delimiter, name, ending):
    rows = (("image", "question", "answer"), ("p.png", "in, out; or?", "a man; a dog, too"))
    content = "\n".join(delimiter.join(f'"{cell}"' for cell in row) for row in rows)
    found = Converted(folder, f"t.{ending}", content)
    assert found.texts == [("in, out; or?", "a man; a dog, too")]
    usual = {"csv": ",", "tsv": "\t"}[ending] == delimiter
    assert found.notes == ([] if usual else [f"{folder / f't.{ending}'}: {found.notes[0].split(': ')[1]}"])
    assert usual or f"read with {name}" in found.notes[0]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("ending", ["csv", "jsonl", "json"])
def test_a_byte_order_mark_says_the_encoding(folder, encoding, ending):
    content = {
        "csv": "image,answer\np.png,żółw\n",
        "jsonl": '{"image": "p.png", "answer": "żółw"}\n',
        "json": '[{"image": "p.png",\n "answer": "żółw"}]\n',
    }[ending]
    assert Converted(folder, f"t.{ending}", content.encode(encoding)).texts == [("", "żółw")]


@pytest.mark.parametrize(
    ("encoding", "text", "said"),
    [
        (
            "cp1252",
            "un été",
            "t.csv:3: byte 0xe9 is not utf-8. Save it as UTF-8, or say what it is, as in --encoding cp1252",
        ),
        ("latin-1", "größer", "t.csv:3: byte 0xf6 is not utf-8"),
        ("shift_jis", "犬と猫", "t.csv:3: byte 0x8c is not utf-8"),
        ("utf-16-le", "a dog", "every second byte or so is NUL, as in UTF-16"),
        ("utf-16-be", "a dog", "every second byte or so is NUL, as in UTF-16"),
    ],
)
def test_other_encodings_are_named_and_taken(folder, encoding, text, said):
    content = f"image,answer\nq.png,x\np.png,{text}\n".encode(encoding)
    assert said in Converted(folder, "t.csv", content).error
    assert "t.csv:3: byte" in Converted(folder, "t.csv", content, encoding="ascii").error or "utf-16" in encoding
    assert Converted(folder, "t.csv", content, encoding=encoding).texts[1] == ("", text)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (
            '[{"answer": "yes", "answer_id": 1}]',
            "holds dict {'answer': 'yes', 'answer_id': '1'} where text is expected; write",
        ),
        ('{"raw": "yes"}', "holds dict"),
        ('["yes", null]', "holds null where text is expected"),
        ('["yes", ["no"]]', "holds list ['no'] where text is expected"),
        ('["yes", " "]', "the column 'answer' has an empty entry"),
        ("[]", "the column 'answer' is empty"),
        ("null", "the column 'answer' is empty"),
        ("NaN", "holds NaN or infinite where text is expected"),
        ("-Infinity", "holds NaN or infinite where text is expected"),
        (r'"a\u0000b"', "has a NUL byte"),
        (r'"\ud83d"', "has '\\ud83d', half of a character"),
    ],
)
def test_values_of_json_that_are_no_answer(folder, value, said):
    lines = '{"image": "q.png", "answer": "fine"}\n\n{"image": "p.png", "answer": %s}\n'
    error = Converted(folder, "t.jsonl", lines % value).error
    assert "1 row cannot be used" in error and "t.jsonl:3: the column 'answer'" in error and said in error


@pytest.mark.parametrize("column", ["question", "instruction", "id", "split"])
@pytest.mark.parametrize("value", [["a", "b"], {"text": "a"}, [], float("nan")])
def test_columns_of_one_text_take_no_lists(folder, column, value):
    error = Converted(folder, "t.jsonl", json.dumps({"image": "p.png", "answer": "x", column: value})).error
    assert f"t.jsonl:1: the column '{column}' holds" in error


def test_what_json_writes_without_quotes_arrives_as_it_is_written(folder):
    lines = [
        '{"image": "p.png", "answer": 7}',
        '{"image": "p.png", "answer": [1.50, 123456789012345678901234567890, true]}',
        '{"image": ["p.png", "q.png"], "answer": "a|b", "question": null}',
        '{"image": "p.png", "answer": false, "question": -1e5}',
    ]
    texts = [("", "7"), ("", "1.50", "123456789012345678901234567890", "true"), ("", "a|b"), ("-1e5", "false")]
    assert Converted(folder, "t.jsonl", "\n".join(lines)).texts == texts
    assert Converted(folder, "t.json", f"[{', '.join(lines)}]").texts == texts
    assert Converted(folder, "lines.json", "\n".join(lines)).texts == texts


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"image": "p.png", "answer": "x", "answer": "y"}', "the key 'answer' stands twice in an object"),
        ('{"image": "p.png", "answer": "x"} {"image": "q.png", "answer": "y"}', "not JSON (Extra data"),
        ("[" * 100_000, "nested too deeply"),
        ('{"image": "p.png", "answer": "x"', "not JSON (Expecting"),
        ('{"image": "p.png"}', "there is no column 'answer'; the columns are image."),
        ('"p.png"', "a JSON str where an object is expected"),
    ],
)
def test_lines_that_are_no_row(folder, line, said):
    error = Converted(folder, "t.jsonl", f'{{"image": "q.png", "answer": "x"}}\n{line}\n[]\n').error
    assert f"t.jsonl:2: {said}" in error or (said in error and "t.jsonl:2: " in error)
    assert "2 rows cannot be used" in error and "t.jsonl:3: a JSON list" in error


def test_more_faults_than_are_shown_are_counted_by_kind(folder):
    rows = [f"none{n}.png,x" for n in range(9)] + ["p.png,"] * 5
    error = Converted(folder, "t.csv", "image,answer\n" + "\n".join(rows)).error
    assert "14 rows cannot be used" in error and len(error.splitlines()) == 12
    # The last five lack the same, which is said once.
    assert "t.csv:11, " in error and "t.csv:13 and 2 more: the column 'answer' is empty" in error


def test_more_kinds_of_faults_than_are_shown_are_counted(folder):
    rows = [f"none{n}.png,x" for n in range(12)] + ["p.png,"] * 5
    error = Converted(folder, "t.csv", "image,answer\n" + "\n".join(rows)).error
    assert "17 rows cannot be used" in error and error.count("t.csv:") == 1 + 10
    assert "... and 7 more. In all: 12 no_image (" in error and "; 5 empty_answer (" in error


def test_parquet(folder):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def written(name, **columns):
        parquet.write_table(pyarrow.table(columns), folder / name)
        return (folder / name).read_bytes()

    day = datetime.date(2020, 2, 3)
    content = written(
        "a.parquet",
        Image=[["p.png", "q.png"], ["r.png"], ["p.png"]],
        answer=[["a", "b"], ["c|d"], ["e"]],
        question=[1, 2, None],
        id=[day, day.replace(year=2021), None],
        note=["n", "n", None],
    )
    found = Converted(folder, "t.parquet", content)
    assert found.texts == [("1", "a", "b"), ("2", "c|d"), ("", "e")] and "'note'" in found.notes[0]
    rows = [json.loads(line) for line in (folder / "out" / "train.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["2020-02-03", "2021-02-03", "3"]
    assert [len(row["image_base64_str"]) for row in rows][0] == 2
    (folder / "out" / "train.jsonl").unlink()
    bad = written("b.parquet", image=["p.png", "q.png", "p.png"], answer=[1.0, float("nan"), None])
    error = Converted(folder, "t.parquet", bad).error
    assert (
        "t.parquet:2: the column 'answer' holds NaN" in error and "t.parquet:3: the column 'answer' is empty" in error
    )
    inside = written("c.parquet", image=[{"bytes": b"x", "path": "p.png"}], answer=["x"])
    assert "t.parquet:1: the column 'image' holds dict" in Converted(folder, "t.parquet", inside).error
    inside = written("c.parquet", image=[b"x"], answer=["x"])
    assert "a picture in the table itself has to become a file" in Converted(folder, "t.parquet", inside).error
    twice = pyarrow.Table.from_arrays([pyarrow.array(["p.png"])] * 3, names=["image", "answer", "answer"])
    parquet.write_table(twice, folder / "d.parquet")
    assert "'answer' stands 2 times" in Converted(folder, "t.parquet", (folder / "d.parquet").read_bytes()).error

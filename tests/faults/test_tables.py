"""Tables as nobody wrote them on purpose: each text of one is in a row or in the report, and nothing else is raised."""

import csv
import io
import json
import random
import re
import tempfile
from pathlib import Path

import pytest
from PIL import Image

from gitllm_plugin.errors import GitLLMError
from gitllm_plugin.m3it.examples import JsonlExamples
from gitllm_plugin.m3it.from_table import COLUMNS, SPLITS, FromTable, convert_table
from gitllm_plugin.m3it.from_table.reading import read_records
from gitllm_plugin.m3it.problems import RowError
from gitllm_plugin.m3it.tree import find_sources

PICTURES = ("a.png", "b.png", "c.jpg", "sub/d.png")
ODD_NAMES = ("author", "Image", " answer", "qestion", "", "x|y", "answers", "QUESTION")
PIECES = (
    *(",", ";", "\t", "|", '"', '""', "\n", "\r\n", "\r", "\\", "\0", " ", "\ufeff", "\u2028", "\x1c", "é", "犬", "#"),
    *(
        "{",
        "}",
        "[",
        "]",
        ":",
        "null",
        "NaN",
        "true",
        "1e999",
        "\\ud800",
        "a.png",
        "../",
        "~",
        "https://a.b/c.png",
        "'",
    ),
)
MARK = re.compile(r"mark\d+z")


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory() as name:
        for number, picture in enumerate(PICTURES):
            (Path(name) / picture).parent.mkdir(exist_ok=True)
            Image.new("RGB", (4, 4), (number * 50, 0, 0)).save(Path(name) / picture)
        yield Path(name)


def words(rng, number):
    """Text with a word that is nowhere else, and what troubles tables."""
    others = [rng.choice(PIECES) if rng.random() < 0.06 else rng.choice(("a", "dog", "is", "red")) for _ in range(3)]
    return " ".join([*others[:1], f"mark{number}z", *others[1:]])


def value(rng, number, depth=0):
    """Something of JSON."""
    kind = rng.randrange(12 if depth < 3 else 8)
    if kind < 6:
        return words(rng, number)
    if kind < 8:
        return rng.choice((None, True, 3, 2.5, float("nan"), float("-inf"), 10**40, ""))
    if kind < 10:
        return [value(rng, number, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(("answer", "k", "")): value(rng, number, depth + 1) for _ in range(rng.randrange(3))}


def rows(rng):
    """Rows of a table: some as they should be, some not."""
    header = list(dict.fromkeys(["image", "answer", *rng.sample(COLUMNS, rng.randrange(5))]))
    if rng.random() < 0.1:
        header.append(rng.choice(ODD_NAMES))
        rng.shuffle(header)
    made, nested = [], rng.random() < 0.3
    for number in range(rng.randrange(1, 8)):
        row = {}
        for place, name in enumerate(header):
            mark = number * 20 + place
            plain = name.strip().lower()
            if plain == "image":
                row[name] = rng.choice(PICTURES) if rng.random() < 0.99 else value(rng, mark)
            elif plain == "split":
                row[name] = rng.choice(("", *SPLITS))
            else:
                row[name] = value(rng, mark) if nested and rng.random() < 0.2 else words(rng, mark)
        made.append(row)
    return header, made


def table(rng):
    """A table's ending and its text."""
    header, made = rows(rng)
    ending = rng.choice(("csv", "tsv", "jsonl", "json"))
    if ending == "jsonl":
        return ending, "".join(json.dumps(row, ensure_ascii=rng.random() < 0.5) + "\n" for row in made)
    if ending == "json":
        return ending, json.dumps(made, indent=rng.choice((None, 1)), ensure_ascii=False)
    text = io.StringIO(newline="")
    quoting = rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    delimiter = rng.choice((",", ";", "\t", "|")) if rng.random() < 0.3 else {"csv": ",", "tsv": "\t"}[ending]
    if rng.random() < 0.3:  # by hand, without a thought of quotes
        lines = [header, *([str(row[name]) for name in header] for row in made)]
        return ending, "\n".join(delimiter.join(map(str, line)) for line in lines)
    writer = csv.writer(text, delimiter=delimiter, quoting=quoting)
    writer.writerow(header)
    writer.writerows([row[name] for name in header] for row in made)
    return ending, text.getvalue()


def damage(rng, text):
    """Change a text in a few places."""
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2, 5))):
        at = rng.randrange(len(text) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            text = text[:at] + rng.choice(PIECES) + text[at:]
        elif kind == 1:
            text = text[:at] + text[at + rng.randrange(1, 4) :]
        elif kind == 2:
            other = rng.randrange(len(text) + 1)
            text = text[:at] + text[other : other + 30] + text[at:]
        else:
            text = text[:at] if rng.random() < 0.2 else text
    return text


def encode(rng, text):
    """Bytes of a text, and what they should be read as; sometimes not what they are."""
    encoding = rng.choice(("utf-8",) * 8 + ("utf-8-sig", "utf-16", "utf-16-le", "cp1252", "shift_jis"))
    data = text.encode(encoding, "ignore" if encoding in ("cp1252", "shift_jis") else "surrogatepass")
    if rng.random() < 0.03:
        data = bytearray(data)
        data[rng.randrange(len(data) + 1) :][:1] = bytes([rng.randrange(256)])
    return bytes(data), rng.choice((None, None, encoding))


def marks_of(values):
    """The marks in what was read."""
    return set(MARK.findall(json.dumps(values, ensure_ascii=False, default=str)))


def account(path, settings, text):
    """Hold what was read of a table, and what was told, against its text."""
    notes = []
    read = list(read_records([path], settings, lambda name: name in PICTURES, notes.append))
    if any("not read" in note for note in notes):
        return  # which marks stand in these columns is what is asked here
    found = marks_of([dict(each.cells) for each in read if not isinstance(each, RowError)])
    lines = list(io.StringIO(text, newline=""))
    starts = [int(match[1]) if (match := re.search(r":(\d+)$", each.place)) else 0 for each in read]
    if path.suffix == ".json" and not all(starts):
        told = [isinstance(each, RowError) for each in read]
        assert any(told) or set(MARK.findall(text.replace("\\mark", ""))) <= found
        return
    for number, (each, start) in enumerate(zip(read, starts, strict=True)):
        if isinstance(each, RowError):
            end = starts[number + 1] - 1 if number + 1 < len(starts) else len(lines)
            found |= marks_of(lines[start - 1 : end])
    # A backslash in front of a mark makes another letter of it in JSON, and no mark.
    expected = set(MARK.findall(re.sub(r"\\.", "", text) if path.suffix != ".csv" else text))
    header = set(MARK.findall("".join(lines[: starts[0] - 1]))) if starts and path.suffix in (".csv", ".tsv") else set()
    assert expected - header <= found, (expected - found, text)
    if path.suffix in (".jsonl", ".json"):
        assert starts == [line for line, each in enumerate(lines, start=1) if each.strip()]


def try_one(seed, folder):
    """Convert one table; whether it was taken."""
    rng = random.Random(seed)
    ending, text = table(rng)
    data, encoding = encode(rng, damage(rng, text))
    path = folder / f"t.{ending}"
    path.write_bytes(data)
    columns = {rng.choice(COLUMNS): rng.choice(ODD_NAMES) or "x"} if rng.random() < 0.1 else None
    settings = FromTable(columns=columns, val=rng.choice((0, 0.3)), test=rng.choice((0, 0.3)), encoding=encoding)
    out, notes = folder / "out", []
    for old in out.glob("*"):
        old.unlink()
    try:
        as_read = data.decode("utf-8-sig" if data.startswith(b"\xef\xbb\xbf") else encoding or "utf-8")
        account(path, settings, as_read)
    except (UnicodeError, GitLLMError) as error:
        # Some are told before any row is read, which the whole way below tells too.
        assert str(error)
    try:
        counts = convert_table(path, out, settings, notes.append)
    except GitLLMError as error:
        assert str(path) in str(error) and not list(out.glob("*"))
        return False
    written = [json.loads(line) for split in counts for line in (out / f"{split}.jsonl").open(encoding="utf-8")]
    assert len(written) == sum(counts.values())
    examples = JsonlExamples(find_sources(str(out / "*.jsonl")))
    assert len(examples) == len(written) and not examples.problems
    return True


@pytest.fixture(autouse=True)
def no_flushing(monkeypatch):
    """A disk need not have thousands of tables at once."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def test_some_tables(folder):
    taken = sum(try_one(seed, folder) for seed in range(500))
    assert 100 < taken < 450


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_tables(folder):
    assert sum(try_one(seed, folder) for seed in range(500, 25_500)) > 5000

"""Rows of M3IT as nobody wrote them on purpose: each is an example or a problem with its line; nothing is raised."""

import io
import json
import random
import tempfile
from functools import cache
from pathlib import Path

import orjson
import pybase64
import pytest
from PIL import Image

from gitllm_plugin.m3it.adapters import ADAPTERS, IMAGE
from gitllm_plugin.m3it.examples import IndexedExamples
from gitllm_plugin.m3it.problems import KINDS
from gitllm_plugin.m3it.rows import RowReader
from gitllm_plugin.m3it.scan import STEP_BYTES, Scan, ScannedFile, check_image, cut_file, scan_slice
from gitllm_plugin.m3it.tables import get_version, open_table

BYTES = (
    b"\0",
    b"\xff",
    b'"',
    b"\\",
    b"{",
    b"]",
    b",",
    b"null",
    b"NaN",
    b"\\ud800",
    b"\xef\xbb\xbf",
    b"1e999",
    b" ",
    b"\r",
)


@cache
def pictures():
    """Base64 of pictures that are whole, cut, and none."""
    buffers = []
    for kind, size in (("PNG", (3, 2)), ("JPEG", (4, 4)), ("GIF", (1, 1))):
        buffer = io.BytesIO()
        Image.new("RGB", size, (9, 8, 7)).save(buffer, format=kind)
        buffers.append(buffer.getvalue())
    texts = [pybase64.b64encode(data).decode() for data in (*buffers, *buffers, buffers[0][:20], b"words")]
    return [*texts, texts[0][:-3], texts[0] + "\n", "é", ""]


def value(rng, depth=0):
    """Something of JSON."""
    kind = rng.randrange(12 if depth < 4 else 8)
    if kind < 4:
        return rng.choice(("", " ", "a dog", "(A) cat", "\ud83d"[:0] + "\u2028", "[HYPO]", "0", "not answerable"))
    if kind < 8:
        return rng.choice((None, True, 0, -3, 2.5, 10**17, "7"))
    if kind < 10:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    names = ("answer", "image", "bytes", "instruction", "inputs", "targets", "0")
    return {rng.choice(names): value(rng, depth + 1) for _ in range(rng.randrange(4))}


def filled(rng, example):
    """An adapter's example with pictures in it, mostly whole ones."""
    if example == IMAGE:
        return rng.choice(pictures()[: 6 if rng.random() < 0.9 else None])
    if isinstance(example, dict):
        return {key: filled(rng, inner) for key, inner in example.items()}
    if isinstance(example, (list, tuple)):
        return [filled(rng, inner) for inner in example]
    return example


def changed(rng, row):
    """A row with one thing changed, somewhere in it."""
    if isinstance(row, dict) and row and rng.random() < 0.9:
        key = rng.choice(list(row))
        kind = rng.randrange(5)
        if kind == 0:
            return {name: inner for name, inner in row.items() if name != key}
        if kind == 1:
            return {**row, rng.choice(("id", "config", "answers", "image", "meta")): value(rng)}
        return {**row, key: changed(rng, row[key])}
    if isinstance(row, list) and row and rng.random() < 0.7:
        place = rng.randrange(len(row))
        return [*row[:place], changed(rng, row[place]), *row[place + 1 :]]
    return value(rng)


def line_of(rng, form):
    """A line of a file whose rows have this form, or nearly."""
    row = filled(rng, form.example)
    for _ in range(rng.choice((0, 0, 1, 1, 2, 4))):
        row = changed(rng, row)
    line = json.dumps(row, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    for _ in range(rng.choice((0, 0, 0, 0, 1, 3))):
        at = rng.randrange(len(line) + 1)
        line = line[:at] + rng.choice(BYTES) + line[at + rng.randrange(3) :]
    return line.replace(b"\n", b"")


def reader_of(rng, form):
    labels = {number: f"thing {number}" for number in range(20)} | {"n01": "a fish"}
    return RowReader(
        config="fuzz",
        split="train",
        adapter=form.name,
        label="train",
        instructions=("Do it.", "Say [HYPO].") if rng.random() < 0.9 else (),
        labels=labels if rng.random() < 0.9 else {0: "a", 1: "b"},
        text_only=rng.random() < 0.3,
        row_config=form.has_ids,
    )


def try_file(seed, folder, rows):
    """Read a file of rows; how many rows it has, and how many were used."""
    rng = random.Random(seed)
    form = ADAPTERS[rng.choice(sorted(ADAPTERS))]
    reader = reader_of(rng, form)
    lines = [line_of(rng, form) for _ in range(rows)]
    path = folder / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    version = get_version(open_table(path))
    scan = Scan()
    for piece in cut_file(path, path.name, reader, rng.choice((50, 400, STEP_BYTES))):
        scan.add(scan_slice(piece, look=rng.choice(("base64", "header", "pixel"))))
    filled_lines = {number for number, line in enumerate(lines, start=1) if line.strip()}
    told = {problem.line for problem in scan.problems}
    assert scan.rows == len(filled_lines)
    assert set(scan.lines) | told == filled_lines
    assert all(problem.kind in KINDS and str(problem) for problem in scan.problems)
    examples = IndexedExamples([ScannedFile(path, reader, version, scan)])
    assert len(examples) == sum(scan.texts)
    for number in range(len(examples)):
        (text,) = examples[number].texts
        assert all(isinstance(part, str) for part in (text.id, text.instruction, text.question, *text.answers))
        assert text.answers and all(answer.strip() for answer in text.answers)
        orjson.dumps([text.id, text.instruction, text.question, text.answers])  # shards are written so
    return len(filled_lines), len(scan.lines)


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def test_some_rows(folder):
    counts = [try_file(seed, folder, rows=10) for seed in range(50)]
    rows, used = map(sum, zip(*counts, strict=True))
    assert rows > 450 and 0.2 < used / rows < 0.8


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_parquet_rows_of_every_form(name):
    """Rows of a table come as Python's values, which JSON has not all."""
    rng = random.Random(name)
    form = ADAPTERS[name]
    reader = reader_of(rng, form)
    odd = (b"x", bytearray(b"x"), float("nan"), {1: 2}, (1, 2), object())
    for number in range(20):
        row = filled(rng, form.example)
        if number % 2 and row:
            row[rng.choice(list(row))] = rng.choice(odd)
        group, problems = reader.read(row, number + 1, lambda data: check_image(data, decode=True))
        assert group is not None or problems


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_rows(folder):
    counts = [try_file(seed, folder, rows=25) for seed in range(100, 1100)]
    assert sum(rows for rows, _ in counts) > 24_000

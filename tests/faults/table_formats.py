"""Formats of what people bring: tables of their own, folders of pictures, M3IT's tree, annotations of LAVIS's data."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from PIL import Image

import gitllm_plugin
from gitllm_plugin.m3it.catalog import BY_NAME
from gitllm_plugin.m3it.check import check_tree
from gitllm_plugin.m3it.from_table.convert import convert_table
from gitllm_plugin.m3it.rows import RowReader
from gitllm_plugin.m3it.scan import Scan, ScannedFile, cut_file, load_index, save_index, scan_slice
from gitllm_plugin.m3it.tables import get_version, open_table
from gitllm_plugin.m3it.tree import find_tree
from gitllm_plugin.words.collection import read_collection
from tests.faults.kit import Format
from tests.m3it_files import write_m3it_jsonl
from tests.m3it_tree import write_entry

_ROWS = 6
_COLUMNS = ("image", "question", "answer", "id", "split")


def _write_pictures(folder: Path) -> list[str]:
    names = [f"{number}.png" for number in range(_ROWS)]
    for number, name in enumerate(names):
        Image.new("RGB", (12, 10), (number * 40, 9, 90)).save(folder / name)
    return names


def _table_rows(folder: Path) -> list[tuple[str, ...]]:
    names = _write_pictures(folder)
    return [(name, f"what, in {name}?", f"a so-called {n}", f"row {n}", "train") for n, name in enumerate(names)]


def _make_delimited(name: str, delimiter: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        with open(folder / name, "w", newline="") as file:
            csv.writer(file, delimiter=delimiter).writerows([_COLUMNS, *_table_rows(folder)])

    return make


def _make_json(folder: Path) -> None:
    rows = [dict(zip(_COLUMNS, row, strict=True)) for row in _table_rows(folder)]
    (folder / "table.json").write_text(json.dumps(rows, indent=1))


def _make_ndjson(folder: Path) -> None:
    rows = [dict(zip(_COLUMNS, row, strict=True)) for row in _table_rows(folder)]
    (folder / "table.ndjson").write_text("\n".join(map(json.dumps, rows)))


def _make_parquet_table(folder: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [dict(zip(_COLUMNS, row, strict=True)) for row in _table_rows(folder)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "table.parquet")


def _make_picture_folder(folder: Path) -> None:
    (folder / "pictures").mkdir()
    for name in _write_pictures(folder / "pictures"):
        (folder / "pictures" / name).with_suffix(".txt").write_text(f"a picture called {name}, größer")


def _convert(name: str) -> Callable[[Path], tuple[Any, int]]:
    def read(folder: Path) -> tuple[list[Any], int]:
        notes: list[str] = []
        counts = convert_table(folder / name, folder / "made", tell=notes.append)
        rows = [orjson.loads(line) for path in sorted((folder / "made").glob("*.jsonl")) for line in path.open("rb")]
        assert len(rows) == sum(counts.values())
        return [row["outputs"] for row in rows], 0

    return read


# ---------------------------------------------------------------- M3IT's tree, and what was found in it

_IN_TREE = ("coco", "imagenet", "snli-ve", "vist")


def _make_tree(folder: Path) -> None:
    for name in _IN_TREE:
        write_entry(folder, BY_NAME[name], rows=2)


def _read_tree(folder: Path) -> tuple[list[Any], int]:
    report = check_tree(find_tree(folder, _IN_TREE), look="pixel")
    told = len(report.missing) + sum(len(split.problems) for split in report.splits)
    for split in report.splits:
        assert split.rows <= split.examples + len(split.problems)
    return [split.examples for split in report.splits], told


_READER = RowReader(config="fuzz", split="train", adapter="uniform", label="train", row_config=True)


def _scan(path: Path) -> ScannedFile:
    scan, version = Scan(), get_version(open_table(path))
    for piece in cut_file(path, path.name, _READER, 2_000):
        scan.add(scan_slice(piece))
    return ScannedFile(path, _READER, version, scan)


def _make_index(folder: Path) -> None:
    write_m3it_jsonl(folder / "rows.jsonl", _ROWS)
    save_index(folder, _scan(folder / "rows.jsonl"), "header")


def _read_index(folder: Path) -> tuple[list[Any], int]:
    """An index belongs to the file that it was made of; one that cannot be read is made anew, which is as good."""
    found = load_index(folder, folder.with_name("whole") / "rows.jsonl", _READER, "header")
    return ([] if found is None else [repr(vars(found.scan))]), int(found is None)


# ---------------------------------------------------------------- annotations, captions


def _make_dialogues(folder: Path) -> None:
    names = _write_pictures(folder)
    turns = [{"question": 0, "answer": 1}, {"question": 1, "answer": 0}]
    dialogues = [{"image_id": n, "caption": f"{name}.", "dialog": turns} for n, name in enumerate(names)]
    content = {"dialogs": dialogues, "questions": ["what is it", "is it red"], "answers": ["a square", "yes"]}
    (folder / "dialogues.json").write_text(json.dumps({"data": content}))


def _read_dialogues(folder: Path) -> tuple[list[Any], int]:
    gitllm_plugin.register()
    from gitllm_plugin.datasets.datasets.visdial_dataset import VisDialDataset

    data = VisDialDataset(np.asarray, str, str(folder), [str(folder / "dialogues.json")])
    return [str(data[number]["text_output"]) for number in range(len(data))], 0


def _make_coco_captions(folder: Path) -> None:
    images = [{"id": n, "file_name": f"{n:012d}.jpg", "height": 480, "width": 640} for n in range(_ROWS)]
    rows = [{"id": n, "image_id": n // 2, "caption": f"Ein {n}. größerer Hund."} for n in range(2 * _ROWS)]
    content = {"info": {"year": 2014}, "images": images, "annotations": rows, "licenses": []}
    (folder / "captions_val2014.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _read_coco_captions(folder: Path) -> tuple[list[Any], int]:
    gitllm_plugin.register()
    from gitllm_plugin.tasks.captioning import read_coco_annotations

    captions = read_coco_annotations(folder / "captions_val2014.json")
    assert all(isinstance(caption, str) for accepted in captions.values() for caption in accepted)
    return list(captions.items()), 0


def _read_captioned(folder: Path) -> tuple[list[Any], int]:
    pictures = list(read_collection(str(folder / "pictures"), 100))
    return [picture.captions for picture in pictures], 0


TABLE_FORMATS = {
    "csv": Format(_make_delimited("table.csv", ","), "*.csv", _convert("table.csv")),
    "tsv": Format(_make_delimited("table.tsv", "\t"), "*.tsv", _convert("table.tsv")),
    "json": Format(_make_json, "*.json", _convert("table.json")),
    "ndjson": Format(_make_ndjson, "*.ndjson", _convert("table.ndjson")),
    "parquet_table": Format(_make_parquet_table, "*.parquet", _convert("table.parquet")),
    "picture_folder": Format(_make_picture_folder, "pictures/*", _convert("pictures")),
    "captioned_folder": Format(_make_picture_folder, "pictures/*", _read_captioned),
    "tree": Format(_make_tree, "**/*.*", _read_tree),
    "index": Format(_make_index, "*.npz", _read_index, exact=True),
    "dialogues": Format(_make_dialogues, "*.json", _read_dialogues),
    "coco_captions": Format(_make_coco_captions, "*.json", _read_coco_captions),
}
"""By name."""

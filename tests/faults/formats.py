"""Every format of a file that others may have written, and how it is read: what is listed here is fuzzed."""

from __future__ import annotations

import hashlib
import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from gitllm_plugin.common.weights import read_checkpoint, write_checkpoint
from gitllm_plugin.errors import DataError
from gitllm_plugin.inference.asking import Decoding
from gitllm_plugin.inference.questions import read_question, read_rows
from gitllm_plugin.llama_cpp.engine import Engine
from gitllm_plugin.m3it.examples import IndexedExamples
from gitllm_plugin.m3it.pictures import read_pixels
from gitllm_plugin.m3it.problems import RowError
from gitllm_plugin.m3it.rows import RowReader
from gitllm_plugin.m3it.scan import Scan, ScannedFile, cut_file, scan_slice
from gitllm_plugin.m3it.shards.features import FeatureReader, Maker, write_features
from gitllm_plugin.m3it.shards.folder import ShardFolder
from gitllm_plugin.m3it.shards.format import read_manifest
from gitllm_plugin.m3it.shards.mixture import ItemTable
from gitllm_plugin.m3it.tables import get_version, open_table
from gitllm_plugin.modeling import load_folder
from tests.faults.kit import Format
from tests.faults.run_formats import RUN_FORMATS
from tests.faults.table_formats import TABLE_FORMATS
from tests.m3it_files import write_m3it_jsonl
from tests.m3it_shards import make_groups, write_shards
from tests.tiny_folder import write_tiny_folder

_ROWS = 6


def _checksum(value: Any) -> str:
    return hashlib.sha256(repr(value).encode("utf-8", "surrogatepass")).hexdigest()[:12]


# ---------------------------------------------------------------- rows


def _rows(path: Path) -> list[dict[str, Any]]:
    return write_m3it_jsonl(path, _ROWS)


def _make_parquet(folder: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = _rows(folder / "rows.jsonl")
    (folder / "rows.jsonl").unlink()
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet", row_group_size=2)


def _make_arrow(folder: Path) -> None:
    """As ``Dataset.save_to_disk`` writes it."""
    import pyarrow

    rows = _rows(folder / "rows.jsonl")
    (folder / "rows.jsonl").unlink()
    table = pyarrow.Table.from_pylist(rows)
    path = str(folder / "data-00000-of-00001.arrow")
    with pyarrow.OSFile(path, "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_indices_files": None}
    (folder / "state.json").write_text(json.dumps(state))


def _read_table(path: Path) -> tuple[list[str], int]:
    reader = RowReader(config="fuzz", split="train", adapter="uniform", label="train", row_config=True)
    scan, version = Scan(), get_version(open_table(path))
    for piece in cut_file(path, path.name, reader, 2_000):
        scan.add(scan_slice(piece, look="pixel"))
    examples = IndexedExamples([ScannedFile(path, reader, version, scan)])
    return [_checksum(examples[number]) for number in range(len(examples))], len(scan.problems)


def _make_questions(folder: Path) -> None:
    lines = []
    for number in range(_ROWS):
        Image.new("RGB", (20, 12), (number * 30, 9, 9)).save(folder / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "question": f"what is {number}?", "id": number}))
    (folder / "rows.jsonl").write_text("\n".join(lines))


def _read_questions(folder: Path) -> tuple[list[str], int]:
    found, told = [], 0
    path = folder / "rows.jsonl"
    for row in read_rows(path.read_bytes().splitlines() if path.is_file() else ()):
        try:
            if isinstance(row, DataError):
                raise row
            question = read_question(row, folder)
            found.append(_checksum([question.text, [read_pixels(each).shape for each in question.pictures]]))
        except DataError:
            told += 1
    return found, told


# ---------------------------------------------------------------- shards and features


def _make_shards(folder: Path) -> None:
    write_shards(folder, make_groups(folder / "rows.jsonl", "a", "train", rows=_ROWS), records_per_shard=3)
    (folder / "rows.jsonl").unlink()


def _read_shards(folder: Path) -> tuple[list[str], int]:
    shards = ShardFolder(str(folder))
    table = ItemTable(shards.read_manifest(), ["a"], "train", 16)
    found, told = [], 0
    for number in range(len(table)):
        try:
            found.append(_checksum(shards.read(table[number])))
        except RowError:
            told += 1
    return found, told


def _read_manifest(folder: Path) -> tuple[list[str], int]:
    manifest = read_manifest(folder)
    table = ItemTable(manifest, sorted(manifest.configs), "train", 16)
    return [str(table[number]) for number in range(min(len(table), 100))], 0


_MAKER = Maker("an encoder", "a processor")


def _make_features(folder: Path) -> None:
    _make_shards(folder / "shards")
    (shard, _) = ItemTable(read_manifest(folder / "shards"), ["a"], "train", 16).shards
    records = [np.full((1, 4, 8), number, np.uint16) for number in range(3)]
    write_features(folder / "features", shard, _MAKER, "float32", records)


def _read_features(folder: Path) -> tuple[list[str], int]:
    table = ItemTable(read_manifest(folder / "shards"), ["a"], "train", 16)
    reader = FeatureReader(folder / "features", table.shards[:1], _MAKER.image_processor)
    found, told = [], 0
    for number in range(3):
        try:
            found.append(_checksum(reader.read(table[number]).tolist()))
        except RowError:
            told += 1
    return found, told


# ---------------------------------------------------------------- weights


def _make_checkpoint(folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {f"layer.{n}.weight": torch.randn(6, 5, generator=generator) for n in range(4)}
    write_checkpoint(folder / "step.pth", {"model": weights, "position": {"step": 3}, "names": ["a", "b"]})


def _read_checkpoint(folder: Path) -> tuple[list[str], int]:
    content = read_checkpoint(folder / "step.pth")
    weights = [(name, value.tolist()) for name, value in sorted(content["model"].items())]
    return [_checksum([weights, content["position"], content["names"]])], 0


def _make_folder(folder: Path) -> None:
    write_tiny_folder(folder / "model")


def _read_folder(folder: Path) -> tuple[list[str], int]:
    loaded = load_folder(folder / "model", "float32", self_test=False)
    weights = [(name, float(value.double().sum())) for name, value in loaded.model.state_dict().items()]
    return [_checksum(weights)], 0


def _make_llama_folder(folder: Path) -> None:
    from gitllm_plugin.inference.pipeline import Pipeline
    from gitllm_plugin.llama_cpp.export import write_llama_folder

    write_tiny_folder(folder / "model")
    write_llama_folder(Pipeline.from_pretrained(folder / "model", "float32", "cpu"), folder / "gguf")
    shutil.rmtree(folder / "model")


def _read_llama_folder(folder: Path) -> tuple[list[str], int]:
    engine = Engine(folder / "gguf", threads=1)
    return [engine.answer(Image.new("RGB", (40, 30), "red"), "what?", None, Decoding(max_new_tokens=3))], 0


# ---------------------------------------------------------------- pictures


_ENDINGS = ("jpg", "png", "webp", "gif", "bmp", "tiff", "avif", "ppm", "jp2", "ico", "dds", "icns", "eps", "tga")
_OTHER_MODES = {"blp": "P", "spi": "F", "pcx": "L", "msp": "1", "sgi": "L", "im": "L"}
_MADE_BY_HAND = ("qoi", "wmf", "emf", "svg")
_ALL = (*_ENDINGS, *_OTHER_MODES, *_MADE_BY_HAND)


def _make_pictures(folder: Path) -> None:
    image = Image.linear_gradient("L").resize((48, 40)).convert("RGB")
    for ending in _ENDINGS:
        image.save(folder / f"picture.{ending}")
    for ending, mode in _OTHER_MODES.items():
        format = "SPIDER" if ending == "spi" else None
        image.convert("L").convert(mode).save(folder / f"picture.{ending}", format)
    size = (48).to_bytes(4, "big") + (40).to_bytes(4, "big")
    (folder / "picture.qoi").write_bytes(b"qoif" + size + b"\3\0" + b"\xfe\1\2\3" * 48 * 40)
    box = b"".join(number.to_bytes(2, "little") for number in (0, 0, 48, 40, 96))
    placed = b"\xd7\xcd\xc6\x9a\0\0" + box + bytes(6)
    (folder / "picture.wmf").write_bytes(placed + b"\1\0\t\0\0\3" + bytes(60))
    box = b"".join(number.to_bytes(4, "little") for number in (0, 0, 48, 40, 0, 0, 4_800, 4_000))
    (folder / "picture.emf").write_bytes(b"\1\0\0\0" + b"\x6c\0\0\0" + box + b" EMF" + bytes(64))
    (folder / "picture.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg' width='4' height='4'/>")


def _read_pictures(folder: Path) -> tuple[list[str], int]:
    found, told = [], 0
    for ending in _ALL:
        try:
            pixels = read_pixels(folder / f"picture.{ending}")
            found.append(f"{ending} {pixels.dtype}")
            assert pixels.ndim == 3 and pixels.shape[2] == 3
        except DataError:
            told += 1
    return found, told


_LLAMA_CPP = Format(_make_llama_folder, "gguf/*", _read_llama_folder, exact=True)

FORMATS = (
    {
        "jsonl": Format(lambda f: _rows(f / "rows.jsonl"), "*", lambda f: _read_table(f / "rows.jsonl")),
        "parquet": Format(_make_parquet, "*", lambda f: _read_table(f / "rows.parquet")),
        "arrow": Format(_make_arrow, "*", _read_table),
        "questions": Format(_make_questions, "*.*", _read_questions),
        "shards": Format(_make_shards, "**/*.tar", _read_shards, units=_ROWS),
        "manifest": Format(_make_shards, "*.json", _read_manifest),
        "features": Format(_make_features, "features/**/*", _read_features, exact=True),
        "checkpoint": Format(_make_checkpoint, "*", _read_checkpoint, exact=True),
        "folder": Format(_make_folder, "**/*", _read_folder, exact=True),
        **({"llama_cpp": _LLAMA_CPP} if find_spec("xllamacpp") else {}),
        "pictures": Format(_make_pictures, "*", _read_pictures, units=len(_ALL), refused=15),
    }
    | TABLE_FORMATS
    | RUN_FORMATS
)
"""By name."""

"""Answers by torch, by transformers' class and by llama.cpp, row after row in turns: which are equal, what one costs.

``python -m benchmarks llama_cpp --model FOLDER --rows 'test/*.jsonl' --limit 500``
"""

from __future__ import annotations

import argparse
import glob
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import results
from benchmarks.transformers_class import TransformersClass
from gitllm_plugin.host.open_model import open_pipeline
from gitllm_plugin.inference.pipeline import Decoding, Pipeline
from gitllm_plugin.llama_cpp.engine import Engine
from gitllm_plugin.llama_cpp.export import write_llama_folder
from gitllm_plugin.m3it.images import decode_base64
from gitllm_plugin.m3it.pictures import read_pixels

TORCH, TRANSFORMERS = "this package, torch, float32", "transformers' class, float32"
_AGAIN, _EVERY = "what is in the picture?", 5  # a second question about the picture, asked in every fifth row
WEIGHTS: dict[str, str | None] = {"llama.cpp, f32": None, "llama.cpp, q8_0": "q8_0", "llama.cpp, q4_k_m": "q4_k_m"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``python -m benchmarks llama_cpp``."""
    add_row_arguments(parser, model="an exported folder or a training run")


def add_row_arguments(parser: argparse.ArgumentParser, model: str) -> None:
    """Arguments of what answers rows; ``model`` says what ``--model`` takes."""
    parser.add_argument("--model", required=True, help=model)
    parser.add_argument("--rows", required=True, nargs="+", help="JSONL files of M3IT rows, or patterns of them")
    parser.add_argument("--limit", type=int, default=500, help="rows, evenly out of all files (default 500)")
    parser.add_argument("--max-new-tokens", type=int, default=12)
    parser.add_argument("--output", type=Path, default=results.FOLDER)


def run(arguments: argparse.Namespace) -> None:
    """Measure on one thread, write both files, print the page."""
    torch.set_num_threads(1)
    rows = read_rows(arguments.rows, arguments.limit)
    pipeline = open_pipeline(arguments.model)
    with tempfile.TemporaryDirectory() as folder:
        engines: dict[str, Any] = {TORCH: pipeline}
        engines |= export(pipeline, Path(folder))
        engines[TRANSFORMERS] = TransformersClass(pipeline)  # now that LoRA is added to the weights
        found = {"where": results.surroundings(), "rows": len(rows)}
        found |= measure(engines, rows, Decoding(max_new_tokens=arguments.max_new_tokens))
        for name, quantize in WEIGHTS.items():
            files = (Path(folder) / str(quantize)).iterdir()
            found["ways"][name]["megabytes"] = sum(file.stat().st_size for file in files) / 1e6
    path = results.write("llama_cpp", found, page(found), arguments.output)
    print(path.read_text())


def read_rows(patterns: list[str], limit: int) -> list[dict[str, Any]]:
    """Read rows, evenly out of all that the patterns name."""
    files = sorted(file for pattern in patterns for file in glob.glob(pattern))
    lines = [line for file in files for line in Path(file).read_text().splitlines()]
    return (
        [json.loads(lines[place * len(lines) // limit]) for place in range(limit)]
        if limit < len(lines)
        else [json.loads(line) for line in lines]
    )


def export(pipeline: Pipeline, folder: Path) -> dict[str, Engine]:
    """Write a model in all kinds of weights, and open each on one thread."""
    for quantize in WEIGHTS.values():
        write_llama_folder(pipeline, folder / str(quantize), quantize)
    return {name: Engine(folder / str(quantize), threads=1) for name, quantize in WEIGHTS.items()}


def measure(engines: dict[str, Any], rows: list[dict[str, Any]], decoding: Decoding) -> dict[str, Any]:
    """Answer each row with each engine, whose order changes from row to row; seconds are the processor's.

    Between two engines every cache of the picture is another's, and each reads the picture anew.
    """
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    again: dict[str, list[float]] = {name: [] for name in engines}
    answers: dict[str, list[str]] = {name: [] for name in engines}
    for number, row in enumerate(rows):
        picture = row["image_base64_str"]
        pixels = read_pixels(decode_base64(picture if isinstance(picture, str) else picture[0]))
        names = list(engines)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            _forget(engines[name])
            before = time.process_time()
            answers[name].append(engines[name].answer(pixels, row["inputs"], row["instruction"] or None, decoding))
            seconds[name].append(time.process_time() - before)
            if number % _EVERY == 0:
                before = time.process_time()
                engines[name].answer(pixels, _AGAIN, row["instruction"] or None, decoding)
                again[name].append(time.process_time() - before)
    ours = answers[TORCH]
    return {
        "ways": {
            name: {
                "equal": sum(a == b for a, b in zip(given, ours, strict=True)),
                "right": sum(a in truths(row) for a, row in zip(given, rows, strict=True)),
                "ms": 1000 * float(np.median(seconds[name])),
                "again_ms": 1000 * float(np.median(again[name])),
                # Of the same row, so that what else the machine did is in both.
                "times_less": {
                    peer: float(np.median(np.divide(seconds[peer], seconds[name])))
                    for peer in (TORCH, TRANSFORMERS)
                    if peer in engines
                },
                "different": [[b, a] for a, b in zip(given, ours, strict=True) if a != b][:20],
            }
            for name, given in answers.items()
        }
    }


def page(found: dict[str, Any]) -> str:
    """Give the results as Markdown."""
    header = [
        *("way", "answers equal to torch's", "right answers", "ms of the processor an answer"),
        *("ms of a second question", "times less than torch", "than transformers' class", "MB"),
    ]
    rows = [
        [
            name,
            f"{way['equal']} of {found['rows']}",
            way["right"],
            f"{way['ms']:.0f}",
            f"{way['again_ms']:.0f}",
            *(f"{way['times_less'][peer]:.2f}" if peer in way["times_less"] else "" for peer in (TORCH, TRANSFORMERS)),
            f"{way['megabytes']:.0f}" if "megabytes" in way else "",
        ]
        for name, way in found["ways"].items()
    ]
    return (
        results.heading("Answers by llama.cpp", found["where"])
        + "\nGreedy, on one thread, from pixels to text: picture encoded, prompt read, answer written. All ways answer "
        "a row before the next one, in changing order, and no picture is found read; the second question is about the "
        "same picture. Times are medians, times less the median over rows.\n\n" + results.table(header, rows)
    )


def truths(row: dict[str, Any]) -> list[str]:
    """Give the accepted answers of a row."""
    return row["outputs"] if isinstance(row["outputs"], list) else [row["outputs"]]


def _forget(engine: Any) -> None:
    if isinstance(engine, Engine):
        engine.forget()

"""Formats of what runs and commands leave for the next one: records, journals, plans, adapters, published weights."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

from gitllm_plugin.curves.read import read_run
from gitllm_plugin.experiments.record import StepRecord
from gitllm_plugin.inference.journal import Journal
from gitllm_plugin.m3it.catalog import BY_NAME
from gitllm_plugin.m3it.shards.make import make_shards, merge
from gitllm_plugin.m3it.shards.plan import Settings
from gitllm_plugin.m3it.tree import find_tree
from gitllm_plugin.modeling.published import load_published, read_published
from tests.faults.kit import Format
from tests.m3it_tree import write_entry

_PUBLISHED = Path(__file__).parents[1] / "data" / "published" / "opt"


def _make_records(folder: Path) -> None:
    steps = [{"step": n, "epoch": 0, "iter": n, "loss": 2.0 / n, "lr": 1e-4, "samples": 8} for n in range(1, 9)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    scores = [{"split": "val", "step": n, "iter": n, "epoch": 0, "loss": 1.5, "exact_match": 0.5} for n in (4, 8)]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(score) + "\n" for score in scores))
    (folder / "tested.json").write_text(json.dumps({"iters": 8, "splits": ["val"]}))


def _read_records(folder: Path) -> tuple[list[Any], int]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run = read_run(folder)
    return [entry["loss"] for entry in run.steps] + [entry["step"] for entry in run.evaluations_of("val")], len(told)


_ASKED = {"model": "a model", "batch": 4}


def _make_journal(folder: Path) -> None:
    journal = Journal(folder / "answers.jsonl", _ASKED)
    journal.append([{"id": number, "answer": f"so {number}, größer"} for number in range(6)])


def _read_journal(folder: Path) -> tuple[list[Any], int]:
    shutil.copytree(folder, again := folder.with_name("again"), dirs_exist_ok=True)
    try:
        journal = Journal(again / "answers.jsonl", _ASKED)
        done = journal.done
        journal.finish()
        return [done], 0
    finally:
        shutil.rmtree(again)


def _make_step_record(folder: Path) -> None:
    record = StepRecord(folder / "steps.json")
    for number in range(4):
        record.note(f"run {number}", seconds=1.5, done="a1b2", folder="/somewhere")


def _read_step_record(folder: Path) -> tuple[list[Any], int]:
    record = StepRecord(folder / "steps.json")
    return [record.get(f"run {number}", "done") for number in range(4)], 0


def _make_plan(folder: Path) -> None:
    """Shards of which two of three parts are there."""
    write_entry(folder / "tree", BY_NAME["coco"], rows=4)
    tree = find_tree(folder / "tree", ["coco"], ["train"])
    for part in (0, 1):
        make_shards(tree, folder / "out", Settings(max_size=3_000), share=(part, 3))


def _read_plan(folder: Path) -> tuple[list[Any], int]:
    shutil.copytree(folder, again := folder.with_name("again"))
    try:
        tree = find_tree(again / "tree", ["coco"], ["train"])
        make_shards(tree, again / "out", Settings(max_size=3_000), share=(2, 3))
        merge(again / "out")
        return [(again / "out" / "manifest.json").read_bytes()], 0
    finally:
        assert {path.relative_to(folder / "tree") for path in (folder / "tree").rglob("*")} == {
            path.relative_to(again / "tree") for path in (again / "tree").rglob("*")
        }
        shutil.rmtree(again)


def _make_published(folder: Path) -> None:
    shutil.copy(_PUBLISHED / "config.json", folder)
    shutil.copy(_PUBLISHED / "weights.safetensors", folder / "model.safetensors")


def _read_published(folder: Path) -> tuple[list[Any], int]:
    model = load_published(*read_published(folder))
    return [float(value.double().sum()) for value in model.state_dict().values()], 0


RUN_FORMATS = {
    "records": Format(_make_records, "*", _read_records),
    "journal": Format(_make_journal, "*", _read_journal),
    "experiment_record": Format(_make_step_record, "*", _read_step_record),
    "plan": Format(_make_plan, "out/.work/**/*.json", _read_plan, exact=True),
    "published": Format(_make_published, "*", _read_published),
}
"""By name."""

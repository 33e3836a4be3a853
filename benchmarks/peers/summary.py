"""All that was measured beside other programs, as one table: ``docs/benchmarks.md`` has it, and a test compares."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.peers.registry import PEERS

_HEADER = [
    "times as fast as", "one text an image", "five", "mixed lengths, one", "five", "memory of it, one", "five",
    "one prompt", "eight of one picture", "ranking",
]  # fmt: skip


def summary(folder: Path = results.FOLDER) -> str:
    """Read the results in ``folder`` and give a row for each way of each program."""
    rows = []
    for name in PEERS:
        for ending, dtype in (("", ""), ("-bf16", ", bf16")):
            path = folder / f"peers-{name}{ending}.json"
            if path.exists():
                rows += _rows(f"[{name}{dtype}](../benchmarks/results/{path.stem}.md)", json.loads(path.read_text()))
    return results.table(_HEADER, rows)


def _rows(title: str, found: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for number, way in enumerate(found["ways"]):
        several = f", {way}" if len(found["ways"]) > 1 else ""
        answers = [_faster(case, "peer") for case in _answered(found)] if number == 0 else ["", ""]
        ranked = _faster(found["rank"], "peer", digits=0) if number == 0 and found.get("rank") else ""
        trained = _padded([_faster(case, way) for case in found["train"]], 4)
        memory = _padded([_share(case, way) for case in found.get("memory", [])], 2)
        rows.append([title + several, *trained, *memory, *_padded(answers, 2), ranked])
    return rows


def _answered(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Give one prompt, and eight about one picture."""
    wanted = ("batch of 1", "eight questions about one picture")
    return [case for case in found.get("generate", []) if case["case"] in wanted]


def _faster(case: Mapping[str, Any], way: str, digits: int = 2) -> str:
    return f"{case['ways'][way]['ours_is_faster']['median']:.{digits}f}"


def _share(case: Mapping[str, Any], way: str) -> str:
    """Give what ours needs beyond the weights, as a share of it."""
    ways = case["ways"]
    return f"{ways['ours']['beyond_gib'] / max(ways[way]['beyond_gib'], 1e-3):.2f}"


def _padded(cells: Sequence[str], count: int) -> list[str]:
    return [*cells, *[""] * (count - len(cells))][:count]

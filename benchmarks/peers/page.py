"""What was found of a peer, as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import results
from benchmarks.timing import Ratio

_TIMES = (
    "Seconds are of the processor, on one thread, each program in a process of its own and in turns, one at a time; "
    "medians. How many times as fast ours is, is of the same round: median (least to most).\n"
)


def page(found: Mapping[str, Any]) -> str:
    """Give the results of one peer."""
    libraries = ", ".join(f"{name} {version}" for name, version in found["libraries"].items())
    parts = [
        results.heading(f"Beside {found['peer']}", found["where"]),
        f"Both models: {found['setup']}, {found['dtype']}, random weights drawn alike; LoRA on query, key and "
        f"value and the projection are trained. The peer runs with {libraries}{_source(found)}. "
        + " ".join([*found["notes"], _equality(found["equality"])])
        + "\n",
        _TIMES,
    ]
    if found["train"]:
        parts.append("## Training\n\nA step: forward, backward, clipping, AdamW.\n")
        parts.append(_training(found["train"]))
    if found.get("memory"):
        parts.append(
            "## Peak memory\n\nA step in a process of its own: GiB in all, and beyond weights and libraries.\n"
        )
        parts.append(_memory(found["memory"]))
    if found.get("generate"):
        parts.append("## Answers\n\nPictures and prompts in, new tokens out, greedily, with LoRA merged.\n")
        parts.append(_answers(found["generate"], found["equality"]["pictures"]))
    if found.get("rank"):
        parts.append(_ranking(found["rank"]))
    return "\n".join(parts)


def _source(found: Mapping[str, Any]) -> str:
    return f", from {found['source']}" if found.get("source") else ""


def _equality(found: Mapping[str, Any]) -> str:
    what = "Losses and lengths of gradients" if found["pictures"] else "Losses of texts alone, and their gradients,"
    differ = "; ".join(f"{way}: {each['loss']:.0e} and {each['gradient']:.0e}" for way, each in found["ways"].items())
    return f"{what} were compared before anything was timed; they differ by ({differ})."


def _training(cases: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            case["case"] if name == "ours" else "",
            name,
            f"{way['median']:.2f}",
            _spread(way["seconds"]),
            "" if name == "ours" else _faster(way),
        ]
        for case in cases
        for name, way in case["ways"].items()
    ]
    return results.table(["texts", "way", "seconds", "spread", "ours is faster by"], rows) + "\n"


def _memory(cases: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for case in cases:
        ours = case["ways"]["ours"]
        for name, way in case["ways"].items():
            share = "" if name == "ours" else f"{ours['peak_gib'] / way['peak_gib']:.2f}"
            beyond = "" if name == "ours" else f"{ours['beyond_gib'] / max(way['beyond_gib'], 1e-3):.2f}"
            row = [f"{way['peak_gib']:.2f}", f"{way['beyond_gib']:.2f}", share, beyond]
            rows.append([case["case"] if name == "ours" else "", name, *row])
    header = ["texts", "way", "peak GiB", "beyond", "ours, of it", "ours beyond, of it"]
    return results.table(header, rows) + "\n"


def _answers(cases: Sequence[Mapping[str, Any]], same_rule: bool) -> str:
    rows = [
        [
            case["case"],
            case["new_tokens"],
            f"{case['ways']['ours']['median']:.2f}",
            f"{case['ways']['peer']['median']:.2f}",
            _faster(case["ways"]["peer"]),
            f"{case['equal_tokens']:.0%}",
        ]
        for case in cases
    ]
    header = ["prompts", "new tokens", "ours, s", "peer, s", "ours is faster by", "equal tokens"]
    if not same_rule:
        header, rows = header[:-1], [row[:-1] for row in rows]
    return results.table(header, rows) + "\n"


def _ranking(found: Mapping[str, Any]) -> str:
    ours, peer = found["ways"]["ours"], found["ways"]["peer"]
    return (
        f"Ranking {found['case']} to a question about a picture: {ours['median']:.1f} s, and "
        f"{peer['median']:.0f} s by the peer's forward passes of image, prompt and answer ({found['ranked_by_peer']} "
        f"answers were timed), **{peer['ours_is_faster']['median']:.0f} times** as long.\n"
    )


def _faster(way: Mapping[str, Any]) -> str:
    return str(Ratio(**way["ours_is_faster"]))


def _spread(seconds: Sequence[float]) -> str:
    """Give most minus least, as a share of the median."""
    if len(seconds) == 1:
        return "one round"
    return f"{(max(seconds) - min(seconds)) / statistics.median(seconds):.0%}"

"""One peer beside ours: equal losses first, then times in turns, then memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.cases import Amounts, Case, answering, probe, ranking, training
from benchmarks.peers.children import Child, started
from benchmarks.peers.registry import OURS, Peer
from benchmarks.peers.setups import Setup
from benchmarks.timing import ratio

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
"""Of losses and of gradients' lengths, relative."""
GRADIENT_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
"""Of the gradient of 30 layers of random weights, float32 has three digits, whatever the program."""
RANKED = 8
"""So many answers a peer ranks, with a forward pass of each; for all it would take hours."""


@dataclass(frozen=True)
class Place:
    """Where a peer is installed: its Python and its source, each None where it needs none."""

    python: Path | None = None
    source: Path | None = None


def measure(
    peer: Peer, place: Place, setup: Setup, amounts: Amounts, memory: bool, save: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Compare one peer with ours.

    Args:
        peer: which.
        place: of its installation.
        setup: sizes of both models.
        amounts: how much work.
        memory: whether peaks are measured too.
        save: is told what there is, after each piece.

    Raises:
        AssertionError: programs whose losses must be equal compute other ones.
        LostProcessError: one of them ended.
    """
    vocabulary = setup.text["vocab_size"]
    found: dict[str, Any] = {"peer": peer.title, "setup": setup.name, "dtype": setup.dtype, "notes": list(peer.notes)}
    with (
        started(OURS, setup, libraries=("torch", "transformers", "peft")) as (ours, _),
        started(peer.adapter, setup, place.python, place.source, peer.libraries) as (theirs, about),
    ):
        found |= {"libraries": about["libraries"], "ways": about["ways"]}
        same = [way for way in about["ways"] if way not in about["other_losses"]]
        found["equality"] = compare(ours, theirs, same, probe(vocabulary), peer.same_rule, setup.dtype)
        warm_up(ours, theirs, about["ways"], probe(vocabulary))
        found["train"] = []
        for case in training(vocabulary, amounts):
            found["train"].append(_train(ours, theirs, about["ways"], case))
            save(found)
        if "generate" in peer.kinds:
            for child in (ours, theirs):
                child.ask(do="merge")
            found["generate"] = []
            for case in answering(vocabulary, amounts):
                found["generate"].append(_generate(ours, theirs, case))
                save(found)
        if "rank" in peer.kinds:
            found["rank"] = _rank(ours, theirs, ranking(vocabulary, amounts))
            save(found)
    if memory:
        found["memory"] = peaks(peer, place, setup, about["ways"], training(vocabulary, amounts)[:2])
        save(found)
    return found


def compare(ours: Child, theirs: Child, ways: Sequence[str], case: Case, same_rule: bool, dtype: str) -> dict[str, Any]:
    """Compute one loss by all, with pictures where all compute GIT's rule, else of the texts alone."""
    mine = ours.ask(do="loss", case=case, way="ours", pictures=same_rule)
    found: dict[str, Any] = {"pictures": same_rule, "ours": mine, "ways": {}}
    for way in ways:
        other = theirs.ask(do="loss", case=case, way=way, pictures=same_rule)
        differs = {key: abs(other[key] / mine[key] - 1) for key in ("loss", "gradient")}
        for key, allowed in (("loss", TOLERANCE[dtype]), ("gradient", GRADIENT_TOLERANCE[dtype])):
            assert differs[key] <= allowed, f"{way}: {key} is {other[key]}, ours {mine[key]}"
        found["ways"][way] = differs
    return found


def warm_up(ours: Child, theirs: Child, ways: Sequence[str], case: Case) -> None:
    """Make one small step by each: what a program does once is then done."""
    ours.ask(do="train", case=case, way="ours")
    for way in ways:
        theirs.ask(do="train", case=case, way=way)


def peaks(peer: Peer, place: Place, setup: Setup, ways: Sequence[str], cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Measure one step of each case in processes of their own: GiB in all, and beyond weights and libraries."""
    found: list[dict[str, Any]] = [{"case": case.name, "ways": {}} for case in cases]
    programs = [
        (started(OURS, setup, measures_memory=True), ("ours",)),
        (started(peer.adapter, setup, place.python, place.source, measures_memory=True), ways),
    ]
    for program, names in programs:
        with program as (child, _):
            for way in names:
                for number, case in enumerate(cases):
                    told = child.ask(do="memory", case=case, way=way)
                    found[number]["ways"][way] = {key: round(value, 3) for key, value in told.items()}
    return found


def _train(ours: Child, theirs: Child, ways: Sequence[str], case: Case) -> dict[str, Any]:
    functions = {"ours": lambda: ours.ask(do="train", case=case, way="ours")}
    functions |= {way: lambda way=way: theirs.ask(do="train", case=case, way=way) for way in ways}
    seconds, found = _in_turns(functions, case.rounds)
    return {
        "case": case.name,
        "texts": len(case.texts),
        "text_tokens": sum(len(text.prompt) + len(text.answer) for text in case.texts),
        "supervised_tokens": case.supervised,
        "losses": found,
        "ways": _times(seconds),
    }


def _generate(ours: Child, theirs: Child, case: Case) -> dict[str, Any]:
    functions = {
        "ours": lambda: ours.ask(do="generate", case=case),
        "peer": lambda: theirs.ask(do="generate", case=case),
    }
    seconds, found = _in_turns(functions, case.rounds)
    pairs = [a == b for mine, other in zip(*found.values(), strict=True) for a, b in zip(mine, other, strict=True)]
    return {
        "case": case.name,
        "new_tokens": case.new_tokens,
        "equal_tokens": statistics.mean(pairs),
        "ways": _times(seconds),
    }


def _rank(ours: Child, theirs: Child, case: Case) -> dict[str, Any]:
    """Ours ranks all; a peer so many that its time for all can be told."""
    part = Case(case.name, case.kind, case.images, case.texts, case.rounds, candidates=case.candidates[:RANKED])
    mine, other = ours.ask(do="rank", case=case), theirs.ask(do="rank", case=part)
    seconds = other["seconds"] * len(case.candidates) / len(part.candidates)
    furthest = max(abs(a - b) for a, b in zip(mine["found"], other["found"]))  # noqa: B905 - of those that both ranked
    return {
        "case": case.name,
        "ranked_by_peer": len(part.candidates),
        "furthest": furthest,
        "ways": _times({"ours": [mine["seconds"]], "peer": [seconds]}),
    }


def _in_turns(
    functions: Mapping[str, Callable[[], dict[str, Any]]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Ask A B C A B C ...; gives the seconds of each and what it found last."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    found: dict[str, Any] = {}
    for _ in range(rounds):
        for name, function in functions.items():
            answer = function()
            seconds[name].append(round(answer["seconds"], 4))
            found[name] = answer["found"]
    return seconds, found


def _times(seconds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Give each one's seconds, and how many times as fast ours is, of the same rounds."""
    return {
        name: {
            "seconds": list(taken),
            "median": statistics.median(taken),
            "ours_is_faster": vars(ratio(taken, seconds["ours"])),
        }
        for name, taken in seconds.items()
    }

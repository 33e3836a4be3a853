"""Other programs for the same work: training steps, answers, ranking and memory, in turns with ours.

``python -m benchmarks peers llava paligemma``; without names it gives all that was measured as one table.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.peers.cases import Amounts
from benchmarks.peers.environments import place_of, set_up
from benchmarks.peers.measure import measure
from benchmarks.peers.page import page
from benchmarks.peers.registry import PEERS
from benchmarks.peers.setups import tiny
from benchmarks.peers.summary import summary

_TINY = Amounts(captions=2, mixed=2, texts=2, batches=(1, 2), new_tokens=3, candidates=20, rounds=2)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``python -m benchmarks peers``."""
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(PEERS)}; none: what was measured")
    parser.add_argument("--setup", action="store_true", help="make their environments and end")
    parser.add_argument("--environments", type=Path, help="the folder of these environments")
    parser.add_argument("--source", type=Path, help="a checkout of the peer's repository, in place of cloning it")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of frozen weights")
    parser.add_argument("--rounds", type=int, default=Amounts.rounds, help="of a step; larger work is timed less often")
    parser.add_argument("--mixed", type=int, default=Amounts.mixed, help="images of a batch of mixed lengths")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 32], help="prompts that are answered at once")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--tiny", action="store_true", help="go through all of it with tiny models")
    parser.add_argument("--output", type=Path, default=results.FOLDER)


def run(arguments: argparse.Namespace) -> None:
    """Measure one peer after another, write both files of each, print the pages."""
    if unknown := [name for name in arguments.names if name not in PEERS]:
        raise SystemExit(f"{unknown[0]!r} is none of {', '.join(PEERS)}")
    if not arguments.names:
        print(summary(arguments.output))
    for name in arguments.names:
        if arguments.setup:
            if arguments.environments is None:
                raise SystemExit("--setup needs --environments FOLDER, which it makes environments in")
            set_up(PEERS[name], arguments.environments, arguments.source)
        else:
            print(_measure(name, arguments).read_text())


def _amounts(arguments: argparse.Namespace) -> Amounts:
    return Amounts(rounds=arguments.rounds, batches=arguments.batches, mixed=arguments.mixed)


def _measure(name: str, arguments: argparse.Namespace) -> Path:
    peer = PEERS[name]
    place = place_of(name, peer, arguments.environments, arguments.source)
    setup = replace(tiny(peer.setup) if arguments.tiny else peer.setup, dtype=arguments.dtype)
    amounts = _TINY if arguments.tiny else _amounts(arguments)
    about = {"where": {**results.surroundings(), "threads": 1}, "source": " at ".join(peer.source or ())}
    title = f"peers-{name}" + {"float32": "", "bfloat16": "-bf16"}[arguments.dtype]

    def save(found: Mapping[str, Any]) -> None:
        complete = {**about, **found}
        results.write(title, complete, page(complete), arguments.output)

    measure(peer, place, setup, amounts, arguments.memory, save)
    return arguments.output / f"{title}.md"

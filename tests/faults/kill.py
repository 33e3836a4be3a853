"""Kills commands that write, runs them again, and compares: ``python -m tests.faults.kill --kills 200``."""

import argparse
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.faults.commands import WRITING, Writing
from tests.faults.trials import Trials


def kill_all(folder: Path, commands: Sequence[Writing], kills: int, seed: int) -> tuple[int, list[str]]:
    """Kill the commands in turn, each trial once or twice, until so many kills were done.

    Args:
        folder: to work in.
        commands: which.
        kills: how many, or a few more.
        seed: of the moments.

    Returns:
        How many kills there were, and all that is wrong.
    """
    trials, generator = Trials(folder), random.Random(seed)
    total, faults = 0, []
    while total < kills:
        for command in commands:
            killed, found = trials.kill(command, generator, kills=generator.choice((1, 1, 2)))
            total += killed
            faults += found
            for fault in found:
                print(fault, flush=True)
            if total >= kills:
                break
        print(f"{total} kills, {len(faults)} faults", flush=True)
    return total, faults


def main() -> int:
    """Kill as the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="commands, as they are typed")
    args = parser.parse_args()
    commands = [command for command in WRITING if not args.only or command.name in args.only]
    with tempfile.TemporaryDirectory(prefix="gitllm-kills-") as folder:
        total, faults = kill_all(Path(folder), commands, args.kills, args.seed)
    print(f"{total} kills over {len(commands)} commands that write: {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

"""``python -m tests.faults.fuzz --inputs 10000``: damaged files of every format, and a table of what became of them."""

from __future__ import annotations

import argparse
import sys

from tests.faults.formats import FORMATS
from tests.faults.kit import FINDINGS, run

_ENDS = ("read", "told", "refused", *FINDINGS)


def main() -> int:
    """Run inputs of some formats, or of all; 1 where something was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("formats", nargs="*", metavar="FORMAT", help=f"of {', '.join(FORMATS)}; all, unless named")
    parser.add_argument("--inputs", type=int, default=1000, help="of each format (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the first input")
    args = parser.parse_args()
    print(f"{'format':12}" + "".join(f"{end:>13}" for end in _ENDS))
    bad = []
    for name in args.formats or FORMATS:
        counts, findings = run(name, args.inputs, args.seed)
        print(f"{name:12}" + "".join(f"{counts.get(end, 0):13,}" for end in _ENDS), flush=True)
        bad += [f"{name}, seed {seed}: {kind}: {more}" for seed, kind, more in findings]
    print("\n".join(bad))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

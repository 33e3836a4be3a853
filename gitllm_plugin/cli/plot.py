"""`gitllm plot`."""

import argparse
from pathlib import Path

_EXAMPLES = """\
examples:
  gitllm plot output/demo/train
  gitllm plot output/a/latest output/b/latest --output figures
"""


def add_parser(subparsers) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "plot",
        help="draw the losses of runs beside each other",
        description="Draw the losses of runs beside each other, over optimizer steps, as PNG files.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or the folder above for its latest run")
    parser.add_argument("--output", type=Path, default=Path(), metavar="FOLDER", help="default: where you stand")
    parser.set_defaults(call=_call)


def _call(args: argparse.Namespace) -> int:
    from gitllm_plugin.curves.draw import draw_runs
    from gitllm_plugin.curves.read import read_run

    for path in draw_runs([read_run(run) for run in args.runs], args.output):
        print(path)
    return 0

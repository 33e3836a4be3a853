"""`gitllm run`."""

import argparse

_EXAMPLES = """\
examples:
  gitllm run ../LAVIS/train.py --cfg-path my.yaml
  gitllm run ../LAVIS/evaluate.py --cfg-path my.yaml --options run.device=cpu
  torchrun --nproc_per_node=2 -m gitllm_plugin run ../LAVIS/train.py --cfg-path my.yaml
"""


def add_parser(subparsers) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "run",
        help="run a script of LAVIS's, unmodified, with the plugin registered",
        description="Run a script of LAVIS's, such as its train.py, unmodified, with the plugin registered.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("script", help="path of the script")
    parser.add_argument("script_args", nargs=argparse.REMAINDER, metavar="...", help="its arguments")
    parser.set_defaults(call=_call)


def _call(args: argparse.Namespace) -> int:
    from gitllm_plugin.host.launch import run_script

    run_script(args.script, args.script_args)
    return 0

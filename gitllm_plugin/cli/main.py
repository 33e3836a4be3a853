"""Entry point of the `gitllm` command."""

import argparse
import os
import sys
from collections.abc import Sequence

from gitllm_plugin import __version__
from gitllm_plugin.cli import (
    completion,
    convert_checkpoint,
    demo,
    doctor,
    evaluate,
    experiment,
    export,
    hook,
    m3it,
    merge,
    parameters,
    plot,
    run,
    train,
    words,
)
from gitllm_plugin.errors import exit_status
from gitllm_plugin.host import torchvision_repair

# Each module has `add_parser(subparsers)`, which sets the parser's `call` to what runs it.
COMMANDS = (
    train,
    evaluate,
    experiment,
    plot,
    m3it,
    parameters,
    export,
    merge,
    convert_checkpoint,
    demo,
    words,
    run,
    hook,
    doctor,
    completion,
)

_EXAMPLES = """\
examples:
  gitllm train --cfg-path projects/git_llm/train/demo_easyvqa.yaml
  gitllm train --cfg-path my.yaml --options run.max_epoch=2 run.device=cpu
  gitllm evaluate --cfg-path my.yaml
  gitllm run ../LAVIS/train.py --cfg-path my.yaml
  gitllm words cat.jpg --model my-model
  gitllm doctor

exit status:
  0  done
  1  doctor or m3it check found a fault; or an unexpected error, with a traceback: please report it
  2  wrong input: the message says what was given, what is allowed and what to do
  130  interrupted; a training has saved where it was
"""


def build_parser() -> argparse.ArgumentParser:
    """The command's parser with all subcommands."""
    parser = argparse.ArgumentParser(
        prog="gitllm",
        description="Train and evaluate GIT-LLM with Salesforce LAVIS.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"gitllm {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        Exit status: 0 done, 1 `doctor` or `m3it check` found a fault, 2 wrong input, 130 interrupted.
    """
    args = build_parser().parse_args(argv)
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' too: lines, where they are piped
    torchvision_repair.announce = torchvision_repair.note
    return exit_status(lambda: args.call(args))

"""Entry point of the ``gitllm`` command."""

import argparse
import os
import sys
from collections.abc import Sequence

from gitllm_plugin import __version__
from gitllm_plugin.cli import ask, conform, m3it, machine, models, runs
from gitllm_plugin.cli.command import HelpForm, Parser, epilog
from gitllm_plugin.common import torchvision_repair
from gitllm_plugin.common.files import storage_error, storage_errors
from gitllm_plugin.errors import exit_status

COMMANDS = (
    runs.train,
    runs.evaluate,
    runs.keys,
    runs.experiment,
    runs.plot,
    m3it.m3it,
    models.parameters,
    models.export,
    models.merge,
    models.convert_checkpoint,
    ask.ask,
    ask.chat,
    ask.caption,
    ask.predict,
    ask.serve,
    conform.conform,
    models.demo,
    models.words,
    runs.run_script,
    machine.hook,
    machine.doctor,
    machine.completion,
)
"""In the order of the help."""

_EXAMPLES = """
    gitllm train projects/git_llm/train/demo_easyvqa.yaml
    gitllm train my.yaml --options run.max_epoch=2 run.device=cpu
    gitllm evaluate output/my-run
    gitllm run ../LAVIS/train.py --cfg-path my.yaml
    gitllm ask cat.jpg "what color is the cat?" --model my-model
    gitllm caption pictures/ --out captions.jsonl --model my-model
    gitllm doctor
"""
_EXIT_STATUS = """
exit status:
  0  done
  1  doctor, conform or m3it check found a fault, or caption or predict could not answer all; or an unexpected error,
     with a traceback: please report it
  2  wrong input: the message says what was given, what is allowed and what to do; or a full disk, a data loader's
     process that was killed, another rank that is gone: the message says what to change
  75  a rank made no progress for run.step_timeout_minutes; the run can be resumed
  130  interrupted; a training has saved where it was
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the command's parser with all subcommands."""
    parser = Parser(
        prog="gitllm",
        description="Train and evaluate GIT-LLM with Salesforce LAVIS.",
        epilog=epilog(_EXAMPLES) + _EXIT_STATUS,
        formatter_class=HelpForm,
    )
    parser.add_argument("--version", action="version", version=f"gitllm {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_to(subparsers, parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments without the program's name; those of the process by default.

    Returns:
        Exit status: 0 done, 1 ``doctor``, ``conform`` or ``m3it check`` found a fault, 2 wrong input, 130 interrupted.
    """
    # Typed alone, it says what it can do.
    args, unknown = build_parser().parse_known_args((sys.argv[1:] if argv is None else argv) or ["--help"])
    if unknown:
        args.parser.refuse(unknown)
    if not sys.stderr.isatty():
        # transformers' bars too: where they are piped, each change of a bar would be a line.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    else:
        # Bars of what takes no time, as of the weights of a small model, are not drawn.
        os.environ.setdefault("TQDM_DELAY", "2")
    torchvision_repair.announce = lambda fault: None  # `gitllm doctor` tells it
    return exit_status(lambda: _call(args))


def _call(args: argparse.Namespace) -> int:
    # Writers tell what they cannot write, by name; this is for those in libraries.
    with storage_errors("a file", read_too=True):
        try:
            return args.call(args) or 0
        finally:
            _flush_output()


def _flush_output() -> None:
    """Write what was printed, where it can still be told that it cannot be written.

    Raises:
        StorageError: it cannot.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        # The interpreter tries it once more at its end, and would add a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise storage_error("standard output", error) from error

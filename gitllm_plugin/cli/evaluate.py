"""`gitllm evaluate`."""

import argparse

from gitllm_plugin.cli.config_arguments import add_config_arguments

_EXAMPLES = """\
examples:
  gitllm evaluate --cfg-path projects/git_llm/eval/demo_easyvqa.yaml
  gitllm evaluate --cfg-path my.yaml --options run.batch_size_eval=64
"""


def add_parser(subparsers) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "evaluate",
        help="evaluate as a configuration file says",
        description="Evaluate as a configuration file says, with the runner it names.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_arguments(parser)
    parser.set_defaults(call=_call)


def _call(args: argparse.Namespace) -> int:
    from gitllm_plugin.host.launch import evaluate

    evaluate(args.cfg_path, args.options)
    return 0

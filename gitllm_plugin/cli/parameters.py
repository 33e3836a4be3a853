"""`gitllm parameters`."""

import argparse

from gitllm_plugin.cli.config_arguments import add_config_arguments

_EXAMPLES = """\
examples:
  gitllm parameters --cfg-path projects/git_llm/train/demo_easyvqa.yaml
  gitllm parameters --cfg-path my.yaml --options model.trainable=proj+lora+vit
"""


def add_parser(subparsers) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "parameters",
        help="list a model's parameters: shape, count, what is trained",
        description="Build the model of a configuration and list its parameters, layers of one shape together.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_arguments(parser)
    parser.set_defaults(call=_call)


def _call(args: argparse.Namespace) -> int:
    from gitllm_plugin.host.launch import list_parameters
    from gitllm_plugin.tables import show

    show(list_parameters(args.cfg_path, args.options))
    return 0

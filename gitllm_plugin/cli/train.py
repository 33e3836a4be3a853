"""`gitllm train`."""

import argparse

from gitllm_plugin.cli.config_arguments import add_config_arguments

_EXAMPLES = """\
examples:
  gitllm train --cfg-path projects/git_llm/train/demo_easyvqa.yaml
  gitllm train --cfg-path my.yaml --options run.device=cpu run.batch_size_train=8
  gitllm train --cfg-path my.yaml --dry-run
  torchrun --nproc_per_node=2 -m gitllm_plugin train --cfg-path my.yaml
"""


def add_parser(subparsers) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "train",
        help="train as a configuration file says",
        description="Train as a configuration file says: LAVIS's train.py with the plugin in it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="train nothing: print the resolved configuration, the parameters, the first batch, memory and time",
    )
    parser.set_defaults(call=_call)


def _call(args: argparse.Namespace) -> int:
    from gitllm_plugin.host.launch import dry_run, train

    if args.dry_run:
        print(dry_run(args.cfg_path, args.options))
    else:
        train(args.cfg_path, args.options)
    return 0

"""`gitllm demo`."""

import argparse

from gitllm_plugin.cli.model_argument import add_model_argument

_EXAMPLES = """\
examples:
  gitllm demo                            the demonstration's model
  gitllm demo --model my-model --port 8000 --open
"""


def add_parser(subparsers) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "demo",
        help="serve a page on this machine to try a model on pictures",
        description="Serve a page on 127.0.0.1: drop a picture, ask, see the answer and where it looks.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_argument(parser)
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.set_defaults(call=_call)


def _call(args: argparse.Namespace) -> int:
    from gitllm_plugin.host.open_model import open_pipeline

    pipeline = open_pipeline(args.model)
    from gitllm_plugin.web.page import serve

    serve(pipeline, args.model, args.port, args.open)
    return 0

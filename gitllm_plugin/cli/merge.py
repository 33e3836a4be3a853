"""`gitllm merge`."""

import argparse

from gitllm_plugin.common.files import check_new_folder

_EXAMPLES = """\
examples:
  gitllm merge exported-folder merged-folder
  gitllm export output/my-run merged-folder --merge      both steps at once, from a training run
"""


def add_parser(subparsers) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "merge",
        help="add a folder's LoRA adapter to its language model",
        description="Add a folder's LoRA adapter to its language model: a plain model with the same answers, faster.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="folder with an adapter")
    parser.add_argument("target", help="folder to make")
    parser.add_argument("--dtype", help="of what is written: float32, bfloat16 or float16; else as it was")
    parser.set_defaults(call=_call)


def _call(args: argparse.Namespace) -> int:
    check_new_folder(args.target)  # before the seconds of an import
    from gitllm_plugin.modeling.convert import merge_folder

    merge_folder(args.source, args.target, args.dtype)
    print(f"written: {args.target}")
    return 0

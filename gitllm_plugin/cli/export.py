"""`gitllm export`."""

import argparse

_EXAMPLES = """\
examples:
  gitllm export output/demo/train/latest my-model                  loads offline: all weights, tokenizer, processor
  gitllm export output/demo/train/latest my-adapter --without-base  a few megabytes: projection and LoRA
  gitllm export output/demo/train/latest my-model --merge           LoRA added to the weights
"""


def add_parser(subparsers) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "export",
        help="write a training run's model as a folder that GitLLM.from_pretrained reads",
        description="Write a training run's model as a folder that GitLLM.from_pretrained reads.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", help="a run's folder (its best weights) or one of its checkpoints")
    parser.add_argument("target", help="folder to make")
    parser.add_argument("--merge", action="store_true", help="add LoRA to the language model's weights")
    parser.add_argument("--without-base", action="store_true", help="name the frozen parts instead of writing them")
    parser.set_defaults(call=_call)


def _call(args: argparse.Namespace) -> int:
    from gitllm_plugin.host.export import export_run

    export_run(args.run, args.target, merge=args.merge, with_base=not args.without_base)
    print(f"written: {args.target}")
    return 0

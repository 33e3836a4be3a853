"""`gitllm convert-checkpoint`."""

import argparse

from gitllm_plugin.common.files import check_new_folder

_EXAMPLES = """\
examples:
  gitllm convert-checkpoint heron-chat-git-Llama-2-7b my-folder
  gitllm convert-checkpoint run-with-unmerged-lora my-folder --lora-alpha 32
"""


def add_parser(subparsers) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "convert-checkpoint",
        help="turn a checkpoint of the published GIT-LLM implementation into a folder of this one",
        description=(
            "Turn a checkpoint of the published GIT-LLM implementation (config.json with safetensors or .bin shards) "
            "into a folder that GitLLM.from_pretrained reads. LoRA is merged."
        ),
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="folder of the published checkpoint")
    parser.add_argument("target", help="folder to make")
    parser.add_argument("--lora-alpha", type=float, help="of unmerged LoRA, where the configuration does not say it")
    parser.set_defaults(call=_call)


def _call(args: argparse.Namespace) -> int:
    check_new_folder(args.target)  # before the seconds of an import
    from gitllm_plugin.modeling.published import convert_published

    convert_published(args.source, args.target, args.lora_alpha)
    print(f"written: {args.target}")
    return 0

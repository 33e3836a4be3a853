"""`gitllm completion`."""

import argparse

_EXAMPLES = """\
examples:
  gitllm completion bash > ~/.local/share/bash-completion/completions/gitllm
  gitllm completion zsh > ~/.zfunc/_gitllm        with `fpath+=~/.zfunc` in front of `compinit` in ~/.zshrc
"""


def add_parser(subparsers) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "completion",
        help="print a script that completes commands and options in a shell",
        description="Print a script that completes commands and options in a shell.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    parser.set_defaults(call=_call)


def _call(args: argparse.Namespace) -> int:
    import shtab

    from gitllm_plugin.cli.main import build_parser

    print(shtab.complete(build_parser(), args.shell))
    return 0

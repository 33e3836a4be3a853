"""`gitllm hook`."""

import argparse

_EXAMPLES = """\
examples:
  gitllm hook install            plain `python train.py --cfg-path my.yaml` now finds the plugin
  GITLLM_HOOK=0 python train.py  not this time
  gitllm hook remove
"""


def add_parser(subparsers) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "hook",
        help="let plain `python train.py` of LAVIS find the plugin (opt-in)",
        description="Write, delete or show the .pth file that registers the plugin when lavis is imported.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=("install", "remove", "status"))
    parser.set_defaults(call=_call)


def _call(args: argparse.Namespace) -> int:
    from gitllm_plugin.host import import_hook

    actions = {"install": import_hook.install, "remove": import_hook.remove, "status": import_hook.status}
    state = actions[args.action]()
    print(f"{'installed' if state.installed else 'not installed'}: {state.path}")
    if state.switched_off:
        print(f"switched off here by {import_hook.KILL_SWITCH}=0")
    return 0

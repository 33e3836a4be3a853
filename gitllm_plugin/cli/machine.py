"""The commands about this machine: what it lacks, LAVIS's own scripts on it, and its shell."""

import argparse
import subprocess
import sys

from gitllm_plugin.cli.command import JSON, argument, command


@command(
    "hook",
    "let plain `python train.py` of LAVIS find the plugin (opt-in)",
    "Write, delete or show the .pth file that registers the plugin when lavis is imported.",
    argument("action", choices=("install", "remove", "status")),
    examples="""
        gitllm hook install            plain `python train.py --cfg-path my.yaml` now finds the plugin
        GITLLM_HOOK=0 python train.py  not this time
        gitllm hook remove
    """,
)
def hook(args: argparse.Namespace) -> None:
    """Change or show the hook."""
    from gitllm_plugin.host import import_hook

    actions = {"install": import_hook.install, "remove": import_hook.remove, "status": import_hook.status}
    state = actions[args.action]()
    print(f"{'installed' if state.installed else 'not installed'}: {state.path}")
    if state.outdated:
        print("it is of another version of this package: gitllm hook install writes it anew")
    if state.switched_off:
        print(f"switched off here by {import_hook.KILL_SWITCH}=0")


@command(
    "doctor",
    "say what this machine has, lacks, and which command helps",
    "Say what this machine has, lacks and which command helps. Exit status 1: it cannot run. Without LAVIS, trained "
    "models are used and none is trained.",
    argument("--fix", action="store_true", help="run the commands that mend it and install LAVIS; asks before each"),
    argument("--yes", action="store_true", help="with --fix: do not ask"),
    JSON,
    examples="""
        gitllm doctor
        gitllm doctor --fix
        gitllm doctor > report.txt; echo $?      0: ready, 1: something that every use needs is missing
    """,
)
def doctor(args: argparse.Namespace) -> int:
    """Examine the machine."""
    from gitllm_plugin.host import doctor as examination
    from gitllm_plugin.tables import show

    if args.yes and not args.fix:
        args.parser.error("--yes goes with --fix")
    if args.fix and not args.yes and not sys.stdin.isatty():
        args.parser.error("--fix asks, and nobody is at a terminal: give --yes too")
    found = examination.examine()
    repairs = examination.repairs_of(found) if args.fix else []
    if not repairs:
        show(examination.describe(found), args.json)
        return 0 if found.ok else 1
    for repair in repairs:
        print(repair, flush=True)
        if args.yes or input("  run it? [y/N] ").strip().lower() in ("y", "yes"):
            examination.repair(repair)
    # What was installed is seen by a process that has not looked before.
    return subprocess.run([sys.executable, "-m", "gitllm_plugin", "doctor"]).returncode


@command(
    "completion",
    "print a script that completes commands and options in a shell",
    "Print a script that completes commands and options in a shell.",
    argument("shell", choices=("bash", "zsh", "tcsh")),
    examples="""
        gitllm completion bash > ~/.local/share/bash-completion/completions/gitllm
        gitllm completion zsh > ~/.zfunc/_gitllm        with `fpath+=~/.zfunc` in front of `compinit` in ~/.zshrc
    """,
)
def completion(args: argparse.Namespace) -> None:
    """Print the script."""
    import shtab

    print(shtab.complete(args.root, args.shell))

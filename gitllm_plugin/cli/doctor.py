"""`gitllm doctor`."""

import argparse

_EXAMPLES = """\
examples:
  gitllm doctor
  gitllm doctor > report.txt; echo $?      0: ready, 1: something that every run needs is missing
"""


def add_parser(subparsers) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "doctor",
        help="say what this machine has, lacks, and which command helps",
        description="Say what this machine has, lacks and which command helps. Exit status 1: it cannot run.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(call=_call)


def _call(args: argparse.Namespace) -> int:
    from gitllm_plugin.host.doctor import examine

    report = examine()
    width = max(len(what) for what, _ in report.facts)
    for what, value in report.facts:
        print(f"{what:<{width}}  {value}")
    if report.extras:
        print("\nnot installed, needed for some uses:")
        for name, (use, command) in report.extras.items():
            print(f"  {name:<13}  {use}: {command}")
    if report.absent:
        print("\nnot needed by GIT-LLM; LAVIS's own models or data sets that use them say so then:")
        for module, command in report.absent.items():
            print(f"  {module:<13}  {command}")
    for note in report.notes:
        print(f"\nnote: {note}")
    for what, command in report.problems:
        print(f"\nproblem: {what}\n  {command}")
    print("\nready" if report.ok else f"\n{len(report.problems)} problem(s)")
    return 0 if report.ok else 1

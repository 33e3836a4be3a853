"""`gitllm doctor`."""

import argparse

from gitllm_plugin.tables import Block, Table, show

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
    show(_blocks(report))
    return 0 if report.ok else 1


def _blocks(report) -> list[Block]:
    blocks: list[Block] = [Table(("", "found"), report.facts)]
    if report.extras:
        rows = [(name, use, command) for name, (use, command) in report.extras.items()]
        blocks += ["not installed, needed for some uses:", Table(("package", "use", "command"), rows)]
    if report.absent:
        blocks.append("not needed by GIT-LLM; LAVIS's own models or data sets that use them say so then:")
        blocks.append(Table(("module", "command"), list(report.absent.items())))
    blocks += [f"note: {note}" for note in report.notes]
    blocks += [f"problem: {what}\n  {command}" for what, command in report.problems]
    blocks.append("ready" if report.ok else f"{len(report.problems)} problem(s)")
    return blocks

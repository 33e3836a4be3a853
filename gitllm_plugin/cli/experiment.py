"""`gitllm experiment`."""

import argparse

_EXAMPLES = """\
examples:
  gitllm experiment projects/git_llm/experiments/demo_exp1.yaml
  gitllm experiment projects/git_llm/experiments/exp1.yaml --only proj proj_lora
  gitllm experiment my.yaml --options run.max_iters=20 run.device=cpu
"""


def add_parser(subparsers) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "experiment",
        help="run a list of trainings, those that are missing, and compare them",
        description="Run a list of trainings one after another, those that are missing, and write a table and figures.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("plan", help="YAML file with title, output_dir and runs")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="runs to start (default: all)")
    parser.add_argument("--fresh", action="store_true", help="run again what is finished")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="overrides for every run")
    parser.set_defaults(call=_call)


def _call(args: argparse.Namespace) -> int:
    from gitllm_plugin.common.processes import show_command
    from gitllm_plugin.experiments.commands import train_command
    from gitllm_plugin.experiments.plan import choose_runs, read_plan
    from gitllm_plugin.experiments.run import run_experiment
    from gitllm_plugin.tables import show

    plan = read_plan(args.plan, args.options)
    if args.dry_run:
        for run in choose_runs(plan, args.only):
            print(show_command(train_command(plan, run)))
        return 0
    show(["", run_experiment(plan, args.only, args.fresh), f"report: {plan.output_dir / 'README.md'}"])
    return 0

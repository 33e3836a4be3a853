"""Run an experiment's runs, one after another; what is finished is not run again."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from gitllm_plugin.common.processes import run_module
from gitllm_plugin.common.run_files import linked_run
from gitllm_plugin.errors import GitLLMError
from gitllm_plugin.experiments.commands import explain_end, train_command
from gitllm_plugin.experiments.plan import Plan, PlannedRun, choose_runs
from gitllm_plugin.experiments.record import StepRecord
from gitllm_plugin.experiments.report import PAGE, write_report
from gitllm_plugin.runners.records import TESTED
from gitllm_plugin.tables import Table

RECORD = "experiment.json"


class RunFailedError(GitLLMError):
    """One or more runs of an experiment ended with an error; the others were run."""


def run_experiment(plan: Plan, only: Sequence[str] = (), fresh: bool = False) -> Table:
    """Start the runs that are missing, resume the one that was interrupted, and write the report.

    Args:
        plan: the experiment.
        only: names of the runs to start; empty: all.
        fresh: start finished runs again, in new folders.

    Returns:
        The report's table.

    Raises:
        ConfigError: when a name is not known.
        RunFailedError: after all runs, when some failed; names them.
        KeyboardInterrupt: after Ctrl-C; the same command goes on.
    """
    record = StepRecord(plan.output_dir / RECORD)
    failed = []
    for number, run in enumerate(chosen := choose_runs(plan, only), start=1):
        print(f"\n[{number}/{len(chosen)}] {run.name}", flush=True)
        if fresh or record.get(run.name, "fingerprint") not in (None, run.fingerprint()):
            record.start_over(run.name)
        if record.get(run.name, "folder"):
            print(f"  already done: {record.get(run.name, 'folder')} (--fresh runs it again)", flush=True)
            continue
        if not _train(plan, run, record):
            failed.append(run.name)
    table = write_report(plan, record)
    logging.getLogger(__name__).info("report: %s", plan.output_dir / PAGE)
    if failed:
        raise RunFailedError(f"{', '.join(failed)} failed; the reasons stand above. The same command tries again.")
    return table


def _train(plan: Plan, run: PlannedRun, record: StepRecord) -> bool:
    """Train a run, or go on with it; gives whether it succeeded."""
    began_before = record.get(run.name, "fingerprint") is not None
    record.note(run.name, fingerprint=run.fingerprint())
    command = train_command(plan, run, resume=began_before)
    with record.timed(run.name):
        status = run_module(command)
    if status != 0:
        print(f"  {explain_end(command, status)}", file=sys.stderr, flush=True)
    folder = linked_run(plan.output_dir / run.folder_name)
    # A run that was told to stop early ends without an error.
    if status != 0 or folder is None or not (folder / TESTED).is_file():
        return False
    record.note(run.name, folder=str(folder))
    return True

"""What LAVIS's own runners and tasks, which declare nothing, read of ``run``, and what is wrong of it with them."""

import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gitllm_plugin.config.node import Checked, check, fields_of, unknown_key
from gitllm_plugin.config.run import STEP_SCHEDULES, LaunchSettings, RunSettings
from gitllm_plugin.config.values import nearest

_READING = re.compile(r"(?:run_cfg|task_cfg)(?:\.get\(\s*[\"'](\w+)|\.(\w+))")
_RATES = ("lr_sched", "init_lr", "min_lr", "weight_decay")
_LOADERS = ("batch_size_train", "num_workers")
_LENGTHS = {"runner_base": ("max_epoch",), "runner_iter": ("max_iters", "iters_per_inner_epoch")}


def check_keys_of_lavis(run: Mapping[str, Any], runner: str, declared: Iterable[type], training: bool) -> Checked:
    """Check ``run`` for one of LAVIS's own runners, beside what other classes declare of it.

    Args:
        run: the section as it is given.
        runner: the runner's name.
        declared: what the task and the launcher declare.
        training: whether anything is trained.

    Returns:
        Faults: a key that is nearly one that is read, a needed one that is missing, a schedule that the runner cannot
        step. Notes: keys that only this package's runner reads.
    """
    found = Checked()
    keys = {name for each in (LaunchSettings, *declared) for name in fields_of(each)} | _read_by_lavis()
    ours = {key for key in run if key in fields_of(RunSettings) and key not in keys}
    for key in run:
        if key in ours:
            value = check(RunSettings, "run", {key: run[key]}, closed=False).faults
            found.faults += [fault for fault in value if fault.startswith(f"run.{key} ")]
            found.notes.append(f"run.{key} has no effect with run.runner={runner}: run.runner=git_llm reads it")
        elif key not in keys and key not in _words_of_tasks() and nearest(key, keys):
            found.faults.append(unknown_key("run", key, keys, f"Keys of 'run' that {runner} and tasks read"))
    if run.get("lr_sched") in STEP_SCHEDULES:
        found.faults.append(
            f"run.lr_sched is {run['lr_sched']!r}, which counts steps, and run.runner={runner} counts epochs; "
            f"use {' or '.join(_schedules_of_lavis())}, or run.runner=git_llm"
        )
    needed = (*_RATES, *_LOADERS, *_LENGTHS.get(runner, ())) if training else ()
    if run.get("valid_splits") or run.get("test_splits"):
        needed = (*needed, "batch_size_eval")
    found.faults += [
        f"run.{key} is missing, and run.runner={runner} cannot do without" for key in needed if run.get(key) is None
    ]
    return found


def _schedules_of_lavis() -> list[str]:
    from lavis.common.registry import registry

    return sorted(name for name in registry.mapping["lr_scheduler_name_mapping"] if name not in STEP_SCHEDULES)


@functools.cache
def _sources(*folders: str) -> str:
    import lavis

    root = Path(str(lavis.__file__)).parent
    files = (file for folder in folders for file in sorted((root / folder).rglob("*.py")))
    return "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files)


@functools.cache
def _read_by_lavis() -> frozenset[str]:
    """Find the keys that LAVIS's code asks ``run`` for."""
    text = _sources("runners", "tasks", "models", "common")
    return frozenset(name for match in _READING.finditer(text) for name in match.groups() if name and name != "get")


@functools.cache
def _words_of_tasks() -> frozenset[str]:
    """List all words of LAVIS's tasks: some take ``run`` under another name."""
    return frozenset(re.findall(r"\w+", _sources("tasks")))

"""`gitllm`, which kills its own process (SIGKILL) at a chosen place: `python killed_run.py PLACE NUMBER train ...`.

PLACE is `step` (before the NUMBERth step's weights change), `written half` (in the middle of the NUMBERth
checkpoint's bytes), `unnamed` (it is whole under its temporary name), `unlinked` (it is named by its step, but not
yet `checkpoint_latest`), `between` (`checkpoint_latest.pth` is new, its weights' second name old), `evaluation`,
`noting` (in the middle of noting the NUMBERth evaluation), `noted` (behind it, before it is known to be done),
`stepped` (behind the NUMBERth step's record), `logged` (behind the NUMBERth line of LAVIS's log) or `scored` (behind
the NUMBERth evaluation of LAVIS's task `vqa`, which notes its scores).
With a RANK in the environment variable KILLED_RANK only that rank is killed.
"""

import os
import signal
import sys

import torch

import gitllm_plugin
from gitllm_plugin.cli.main import main

gitllm_plugin.register()

from lavis.common.registry import registry  # noqa: E402

from gitllm_plugin.common import files  # noqa: E402
from gitllm_plugin.runners import checkpoints, records  # noqa: E402
from gitllm_plugin.runners.git_llm import GitLLMRunner  # noqa: E402
from gitllm_plugin.runners.loop import TrainingLoop  # noqa: E402
from gitllm_plugin.tasks.m3it import M3ITTask  # noqa: E402


def kill_at(owner, name: str, number: int, condition=lambda *args: True, before=lambda *args: None) -> None:
    """Replace a function by one that ends this process when it is called the `number`th time."""
    original, calls = getattr(owner, name), 0

    def replacement(*args, **kwargs):
        nonlocal calls
        calls += condition(*args)
        if calls == number and condition(*args):
            before(*args)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, replacement)


def write_half(content, path) -> None:
    """The first half of a checkpoint's bytes, under the name that it is written to."""
    torch_save(content, path)
    with open(path, "rb+") as file:
        file.truncate(os.path.getsize(path) // 2)


def kill_after(owner, name: str, number: int) -> None:
    """Replace a function by one that ends this process when it has been called the `number`th time."""
    original, calls = getattr(owner, name), 0

    def replacement(*args, **kwargs):
        nonlocal calls
        result = original(*args, **kwargs)
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, replacement)


def is_evaluations(*args) -> bool:
    return str(args[-1]).endswith("evaluations.jsonl")


def is_checkpoint(*args) -> bool:
    return any(str(arg).endswith(".pth") or ".pth." in str(arg) for arg in args)


torch_save = torch.save
PLACES = {
    "step": lambda number: kill_at(TrainingLoop, "_step", number),
    "written half": lambda number: kill_at(torch, "save", number, before=write_half),
    "unnamed": lambda number: kill_at(files.os, "replace", number, is_checkpoint),
    "unlinked": lambda number: kill_at(checkpoints, "link_or_copy", 4 * number - 3),
    "between": lambda number: kill_at(checkpoints, "link_or_copy", 2 * number),
    "noting": lambda number: kill_at(files.os, "replace", number, is_evaluations),
    "noted": lambda number: kill_after(records, "note_evaluation", number),
    "stepped": lambda number: kill_after(records.StepLog, "add", number),
    "logged": lambda number: kill_after(GitLLMRunner, "log_stats", number),
    "scored": lambda number: kill_after(registry.get_task_class("vqa"), "after_evaluation", number),
    "evaluation": lambda number: kill_at(M3ITTask, "after_evaluation", number),
}

if __name__ == "__main__":
    if os.environ.get("KILLED_RANK", "0") == os.environ.get("RANK", "0"):
        PLACES[sys.argv[1]](int(sys.argv[2]))
    sys.exit(main(sys.argv[3:]))

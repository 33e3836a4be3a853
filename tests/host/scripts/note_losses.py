"""Trains once into each folder, noting every loss there, and may die in the middle of the last run.

Arguments: after how many iterations of the last run to die (0 for never), configuration, options, `--`, folders.
"""

import os
import sys
from pathlib import Path

import torch

import gitllm_plugin

gitllm_plugin.register()

from lavis.common.registry import registry  # noqa: E402
from lavis.tasks.base_task import BaseTask  # noqa: E402

from gitllm_plugin.host import launch  # noqa: E402

die_after, config, *options = sys.argv[1:]
folders = [Path(name) for name in options[options.index("--") + 1 :]]
options = options[: options.index("--")]
train_step = BaseTask.train_step


class NoteLosses:
    def __init__(self, folder: Path, die_after: int):
        self.path = folder / f"losses_rank{os.environ['RANK']}.txt"
        self.die_after = die_after
        self.done = 0

    def __call__(self, task, model, samples):
        # LAVIS's checkpoints hold no generator's state, so dropout is drawn by the place in the run.
        torch.manual_seed(1000 * samples["epoch"] + samples["iters"])
        loss = train_step(task, model, samples)
        with open(self.path, "a") as file:
            file.write(f"{loss.item()!r}\n")
        self.done += 1
        if self.done == self.die_after:
            os._exit(9)
        return loss


launch._leave_process_group = lambda: None  # the next run needs it
for folder in folders:
    registry.mapping["paths"].pop("output_dir", None)  # LAVIS sets them once in a process
    registry.mapping["paths"].pop("result_dir", None)
    folder.mkdir(exist_ok=True)
    note = NoteLosses(folder, int(die_after) if folder is folders[-1] else 0)
    BaseTask.train_step = lambda self, model, samples, note=note: note(self, model, samples)
    launch.train(config, [*options, f"run.output_dir={folder}"])

"""Trains through LAVIS's main sequence as often as it is told, noting every loss.

Its argument is JSON: `config`, and `runs`, each with `folder`, `options`, `resume` (a folder whose `checkpoint_2.pth`
is gone on from, or null) and `stop_after` (iterations; 0 for never). A run is stopped by an error, the last one by
death.
"""

import json
import os
import sys
from pathlib import Path

import torch

import gitllm_plugin

gitllm_plugin.register()

from lavis.common.registry import registry  # noqa: E402
from lavis.tasks.base_task import BaseTask  # noqa: E402

from gitllm_plugin.host import launch  # noqa: E402

train_step = BaseTask.train_step


class StoppedError(Exception):
    pass


class NoteLosses:
    def __init__(self, folder: Path, stop_after: int, dies: bool):
        self.path = folder / f"losses_rank{os.environ['RANK']}.txt"
        self.stop_after = stop_after
        self.dies = dies
        self.done = 0

    def __call__(self, task, model, samples):
        # LAVIS's checkpoints hold no generator's state, so dropout is drawn by the place in the run.
        torch.manual_seed(1000 * samples["epoch"] + samples["iters"])
        loss = train_step(task, model, samples)
        with open(self.path, "a") as file:
            # git main gives what the loss is made of besides.
            file.write(f"{(loss[0] if isinstance(loss, tuple) else loss).item()!r}\n")
        self.done += 1
        if self.done == self.stop_after:
            if self.dies:
                os._exit(9)
            raise StoppedError
        return loss


def run(config: str, folder: Path, options: list[str], resume: str | None, stop_after: int, dies: bool) -> None:
    registry.mapping["paths"].pop("output_dir", None)  # LAVIS sets them once in a process
    registry.mapping["paths"].pop("result_dir", None)
    folder.mkdir(exist_ok=True)
    if resume:
        (checkpoint,) = Path(resume).rglob("checkpoint_2.pth")
        options = [*options, f"run.resume_ckpt_path={checkpoint}"]
    note = NoteLosses(folder, stop_after, dies)
    BaseTask.train_step = lambda self, model, samples: note(self, model, samples)
    try:
        launch.train(config, [*options, f"run.output_dir={folder}"])
    except StoppedError:
        torch.distributed.barrier()  # no rank goes on while another still stops


launch._leave_process_group = lambda: None  # the next run needs it
given = json.loads(sys.argv[1])
for number, arguments in enumerate(given["runs"], start=1):
    arguments["folder"] = Path(arguments["folder"])
    run(given["config"], **arguments, dies=number == len(given["runs"]))

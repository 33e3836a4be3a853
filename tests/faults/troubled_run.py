"""A tiny run that something happens to: `python troubled_run.py TROUBLE FOLDER key=value ...` (keys of `run:`).

TROUBLE is `none`; `hanging KEY` (reading SPLIT, on rank 1 alone, never ends) for KEY of train, val, test; `scores`
(rank 0 never has its scores); `killed SPLIT`, `crashed SPLIT` or `left SPLIT` (the process that loads it gets SIGKILL,
SIGSEGV, or exits). Exit status and errors are those of the command.
"""

import logging
import os
import signal
import sys
import time
from pathlib import Path

import torch
from omegaconf import OmegaConf

sys.path.insert(0, str(Path(__file__).parents[1] / "runners"))

from tiny_run import TinyData, build_runner  # noqa: E402

from gitllm_plugin.errors import exit_status  # noqa: E402
from gitllm_plugin.tasks.m3it import M3ITTask  # noqa: E402

ENDS = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "crashed": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "left": lambda: os._exit(3),
    "hanging": lambda: time.sleep(1000),
}


class TroubledData(TinyData):
    """Something happens where its fourth example is read."""

    def __init__(self, size: int, trouble: str | None):
        super().__init__(size)
        self.trouble = trouble

    def __getitem__(self, index: int) -> dict:
        if index == 3 and self.trouble:
            ENDS[self.trouble]()
        return super().__getitem__(index)


def main(trouble: str, folder: str, *arguments: str) -> int:
    """Train with the trouble."""
    if "RANK" in os.environ:
        torch.distributed.init_process_group("gloo")
    rank = int(os.environ.get("RANK", "0"))
    what, _, where = trouble.partition(" ")
    data = {
        split: TroubledData(size, what if where == split and (what != "hanging" or rank == 1) else None)
        for split, size in (("train", 16), ("val", 7), ("test", 9))
    }
    if what == "scores" and rank == 0:
        M3ITTask._write = lambda *args: time.sleep(1000)  # type: ignore[method-assign]
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings = OmegaConf.to_container(OmegaConf.from_dotlist(list(arguments)))
    run = build_runner(folder, data=data, **settings)  # type: ignore[arg-type]
    status = exit_status(lambda: run.train() or 0)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

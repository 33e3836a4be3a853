"""A process with one program in it, which is told what to do line by line: ``python -m benchmarks.peers.child``.

The first line that it reads names adapter and setup; it answers each with one line of JSON.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.adapter import Adapter
from benchmarks.peers.cases import Case
from benchmarks.peers.setups import Setup


class Worker:
    """Answers requests by a program.

    Args:
        adapter: around it.
    """

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self._prepared: dict[tuple[str, str], Callable[[], Any]] = {}
        self._optimizer: Any = None
        self._built_gib = resident_gib()

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Do what is asked: a method's name stands in ``do``, its arguments beside it."""
        arguments = {key: value for key, value in request.items() if key != "do"}
        if "case" in arguments:
            arguments["case"] = Case.from_json(arguments["case"])
        return getattr(self, request["do"])(**arguments)

    def loss(self, case: Case, way: str, pictures: bool) -> dict[str, Any]:
        """Compute loss and the length of its gradient, of what all programs train."""
        self.adapter.model.zero_grad(set_to_none=True)
        value = self._loss(self.adapter.batch(case, way, pictures))
        value.backward()
        squares = sum(float(gradient.double().square().sum()) for gradient in self.adapter.shared_gradients())
        self.adapter.model.zero_grad(set_to_none=True)
        return {"loss": value.item(), "gradient": squares**0.5}

    def train(self, case: Case, way: str) -> dict[str, Any]:
        """Time a step: forward, backward, clipping and AdamW with a learning rate of 0."""
        step = self._once((case.name, way), lambda: self._step(case, way))
        return self._timed(step)

    def generate(self, case: Case) -> dict[str, Any]:
        """Time answers."""
        return self._timed(self._once((case.name, ""), lambda: self.adapter.answers(case)))

    def rank(self, case: Case) -> dict[str, Any]:
        """Time scores of candidates."""
        return self._timed(self._once((case.name, ""), lambda: self.adapter.scores(case)))

    def merge(self) -> dict[str, Any]:
        """Merge LoRA and give all weights one dtype: from now on it answers, and trains no more."""
        self._prepared.clear()
        self._optimizer = None
        self.adapter.merge_lora()
        self.adapter.model.to(getattr(torch, self.adapter.setup.dtype))
        return {}

    def memory(self, case: Case, way: str) -> dict[str, Any]:
        """Measure one step's peak, in all and beyond the built model and its libraries."""
        step = self._step(case, way)
        resident_gib()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
        step()
        peak = gib("VmHWM")
        return {"peak_gib": peak, "beyond_gib": peak - self._built_gib}

    def _once(self, key: tuple[str, str], make: Callable[[], Callable[[], Any]]) -> Callable[[], Any]:
        if key not in self._prepared:
            self._prepared[key] = make()
        return self._prepared[key]

    def _timed(self, function: Callable[[], Any]) -> dict[str, Any]:
        began = time.process_time()
        found = function()
        return {"seconds": time.process_time() - began, "found": found}

    def _loss(self, batch: Any) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.adapter.setup.dtype == "bfloat16"):
            return self.adapter.loss(batch)

    def _step(self, case: Case, way: str) -> Callable[[], float]:
        own = self.adapter.training(case, way)
        if own is not None:
            return own
        trained = self.adapter.trained
        if self._optimizer is None:
            self._optimizer = torch.optim.AdamW(trained, lr=0.0)
        optimizer, batch = self._optimizer, self.adapter.batch(case, way, True)

        def step() -> float:
            loss = self._loss(batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.item()

        return step


def resident_gib() -> float:
    """Give back what was freed, and say what is left."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return gib("VmRSS")


def gib(field: str) -> float:
    """Give a line of Linux' account of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 2**20
    raise OSError(f"/proc/self/status has no {field}")


def load_torchvision() -> None:
    """Make torchvision loadable where it is there and of another build than torch, as PyPI's is beside a CPU's."""
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError:
        return
    except RuntimeError:
        importlib.import_module("gitllm_plugin.common.torchvision_repair").repair_torchvision()


def main() -> None:
    """Answer until there is nothing more to read."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    torch.set_num_threads(1)
    load_torchvision()
    start = json.loads(sys.stdin.readline())
    module, _, name = start["adapter"].partition(":")
    worker = Worker(getattr(importlib.import_module(module), name)(Setup(**start["setup"])))
    libraries = {name: version(name) for name in start["libraries"]}
    about = {"ways": worker.adapter.ways, "other_losses": worker.adapter.other_losses, "libraries": libraries}
    print(json.dumps(about), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(worker.answer(json.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
    main()

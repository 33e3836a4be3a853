"""Peak memory of one way of training, in a process of its own.

``python -m benchmarks.memory SHAPE WAY IMAGES TEXTS`` prints it as JSON.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from gitllm_plugin.common.processes import describe_end
from gitllm_plugin.errors import LostProcessError


def peak_memory(shape: str, way: str, images: int, texts_per_image: int) -> dict[str, float]:
    """Memory of one training step.

    Returns:
        ``peak_gib``: of the whole process, and ``above_weights_gib``: of it what the steps took beyond the built
        model and its libraries.

    Raises:
        LostProcessError: when the process failed; says how it ended and what it printed.
    """
    command = [sys.executable, "-m", "benchmarks.memory", shape, way, str(images), str(texts_per_image)]
    # What is freed goes back to the system at once, so that the peak is what was needed and not what malloc hoards.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    if ended.returncode != 0:
        raise LostProcessError(f"`{shlex.join(command)}` {describe_end(ended.returncode)}\n{ended.stderr}")
    return json.loads(ended.stdout.splitlines()[-1])


def _gib(field: str) -> float:
    """Give a line of Linux' account of this process. (``getrusage`` gives a child the peak of its parent too.)"""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 2**20
    raise OSError(f"/proc/self/status has no {field}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure this process."""
    shape, way, images, texts = sys.argv[1:] if arguments is None else arguments
    from benchmarks.batches import random_batch
    from benchmarks.shapes import build
    from benchmarks.ways import WAYS, training_step

    model = build(shape)
    step = training_step(model, WAYS[way](model))
    batch = random_batch(model, int(images), int(texts))
    before = _gib("VmRSS")
    step(batch)
    peak = _gib("VmHWM")
    print(json.dumps({"peak_gib": round(peak, 3), "above_weights_gib": round(peak - before, 3)}))


if __name__ == "__main__":
    main()

"""Progress on rank 0: a bar on a terminal, a line now and then elsewhere."""

import logging
import resource
import sys
import time

import torch
from tqdm import tqdm

from gitllm_plugin.common import ranks


class Progress:
    """Shows how far something is. A context manager that may be entered several times; other ranks show nothing.

    Args:
        description: what is going on, such as ``epoch 1/3``; may be changed between two entries.
        total: number of iterations, or None where it is not known.
        start: iterations already done.
        log_freq: iterations between two lines where there is no terminal.
        at_end: whether a line is due at the end as well: not where a result follows.
    """

    def __init__(self, description: str, total: int | None, start: int = 0, log_freq: int = 50, at_end: bool = False):
        self.description = description
        self.total = total
        self.done = self.start = start
        self.log_freq = log_freq
        self.at_end = at_end
        self.samples = 0
        self.began = self.entered = time.monotonic()
        self.enabled = ranks.rank() == 0
        self.bar: tqdm | None = None

    def __enter__(self) -> "Progress":
        """Begin to show it."""
        self.samples, self.entered = 0, time.monotonic()
        if self.enabled and sys.stderr.isatty():
            form = "{l_bar}{bar}| {n_fmt}/{total_fmt}{postfix}"
            self.bar = tqdm(
                desc=self.description, total=self.total, initial=self.done, dynamic_ncols=True, bar_format=form
            )
        return self

    def __exit__(self, *exception: object) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def update(self, iterations: int = 1, samples: int = 0, **values: str) -> None:
        """Count iterations and examples, and show ``values`` beside them."""
        self.done += iterations
        self.samples += samples
        if not self.enabled or (self.bar is None and not self._is_due(iterations)):
            return
        seconds = max(time.monotonic() - self.entered, 1e-9)
        values |= {"samples/s": f"{self.samples / seconds:.1f}"}
        if self.total is not None:
            values["eta"] = self._time_left()
        if self.bar is not None:
            self.bar.set_postfix(values, refresh=False)
            self.bar.update(iterations)
        else:
            shown = "  ".join(f"{name} {value}" for name, value in values.items())
            logging.info("%s [%d/%s]  %s", self.description, self.done, self.total or "?", shown)

    def _is_due(self, iterations: int) -> bool:
        """Tell whether a line is due: every ``log_freq`` iterations."""
        crossed = self.done // self.log_freq > (self.done - iterations) // self.log_freq
        return crossed or (self.at_end and self.done == self.total)

    def _time_left(self) -> str:
        """Estimate what is left by what was done, with whatever came between two entries."""
        pace = (time.monotonic() - self.began) / max(1, self.done - self.start)
        return tqdm.format_interval(pace * ((self.total or 0) - self.done))


def peak_memory() -> int:
    """Give the most bytes that this process has used so far, of its GPU where torch uses one, else of the machine."""
    # Not only is_available: of a process that computes on the CPU beside a GPU, that would be 0.
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    # Kilobytes, but for macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

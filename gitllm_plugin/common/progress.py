"""Progress on rank 0: a bar on a terminal, a line now and then elsewhere."""

import logging
import resource
import sys
import time

import torch
from tqdm import tqdm

from gitllm_plugin.common import ranks


class Progress:
    """Shows how far a loop is. A context manager; other ranks show nothing.

    Args:
        description: what is going on, such as ``epoch 1/3``.
        total: number of iterations, or None where it is not known.
        start: iterations already done.
        log_freq: iterations between two lines where there is no terminal.
    """

    def __init__(self, description: str, total: int | None, start: int = 0, log_freq: int = 50):
        self.description = description
        self.total = total
        self.done = self.start = start
        self.log_freq = log_freq
        self.samples = 0
        self.tokens = 0
        self.began = time.monotonic()
        self.enabled = ranks.rank() == 0
        self.bar = None
        if self.enabled and sys.stderr.isatty():
            self.bar = tqdm(desc=description, total=total, initial=start, dynamic_ncols=True)

    def __enter__(self) -> "Progress":
        """Give the bar, which is shown since it was made."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.close()

    def update(self, iterations: int = 1, samples: int = 0, tokens: int = 0, **values: str) -> None:
        """Count iterations, examples and supervised tokens, and show ``values`` beside them."""
        self.done += iterations
        self.samples += samples
        self.tokens += tokens
        if not self.enabled or (self.bar is None and not self._is_due(iterations)):
            return
        values |= self._rates()
        if self.bar is not None:
            self.bar.set_postfix(values, refresh=False)
            self.bar.update(iterations)
        else:
            logging.info(self._line(values))

    def _rates(self) -> dict[str, str]:
        seconds = max(time.monotonic() - self.began, 1e-9)
        rates = {"samples/s": f"{self.samples / seconds:.1f}"}
        if self.tokens:
            rates["tokens/s"] = f"{self.tokens / seconds:.0f}"
        return {**rates, "memory": f"{peak_memory() / 2**30:.1f}G"}

    def _is_due(self, iterations: int) -> bool:
        """Tell whether a line is due: every ``log_freq`` iterations and at the end."""
        crossed = self.done // self.log_freq > (self.done - iterations) // self.log_freq
        return crossed or self.done == self.total

    def _line(self, values: dict[str, str]) -> str:
        shown = "  ".join(f"{name}: {value}" for name, value in values.items())
        line = f"{self.description}  [{self.done}/{self.total or '?'}]  {shown}"
        if self.total is not None:
            seconds = (time.monotonic() - self.began) / max(1, self.done - self.start)
            line += f"  eta: {tqdm.format_interval(seconds * (self.total - self.done))}"
        return line


def peak_memory() -> int:
    """Give the most bytes that this process has used so far, of its GPU where torch uses one, else of the machine."""
    # Not only is_available: of a process that computes on the CPU beside a GPU, that would be 0.
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    # Kilobytes, but for macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

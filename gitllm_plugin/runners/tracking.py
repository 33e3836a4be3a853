"""Curves beside the run's own files: TensorBoard and Weights & Biases."""

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gitllm_plugin.errors import ConfigError

Log = Callable[[int, Mapping[str, Any]], None]


class Tracker:
    """One place that numbers are sent to.

    Args:
        log: Takes a step, counted from 1, and numbers by name.
        close: Writes what is left.
    """

    def __init__(self, log: Log, close: Callable[[], None]):
        self.log = log
        self.close = close


def _tensorboard(folder: Path, config: Mapping[str, Any]) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"))

    def log(step: int, numbers: Mapping[str, Any]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    return Tracker(log, writer.close)


def _wandb(folder: Path, config: Mapping[str, Any]) -> Tracker:
    import wandb

    # The folder's name, so that a resumed run goes on in its own page. Project and account are W&B's own
    # environment variables.
    run = wandb.init(dir=str(folder), name=folder.name, id=folder.name, resume="allow", config=dict(config))
    return Tracker(lambda step, numbers: run.log(dict(numbers), step=step), run.finish)


_OPEN = {"tensorboard": _tensorboard, "wandb": _wandb}
TRACKERS = tuple(_OPEN)
"""What `run.trackers` may name; each is also the package that it needs."""


def missing_packages(names: Sequence[str]) -> list[str]:
    """One message for each tracker that is asked for and not installed."""
    return [
        f"run.trackers has {name!r}, which is not installed: pip install {name}"
        for name in names
        if name in TRACKERS and find_spec(name) is None
    ]


class Trackers:
    """All that a run sends numbers to; nothing where `names` is empty.

    Args:
        names: Of `TRACKERS`.
        folder: The run's.
        config: The resolved configuration.

    Raises:
        ConfigError: A package is missing.
    """

    def __init__(self, names: Sequence[str], folder: Path, config: Mapping[str, Any]):
        missing = missing_packages(names)
        if missing:
            raise ConfigError("\n".join(missing))
        self.trackers = [_OPEN[name](folder, config) for name in names]

    def log(self, step: int, prefix: str, values: Mapping[str, Any]) -> None:
        """Send the numbers among `values`, each as `prefix/name`."""
        numbers = {
            f"{prefix}/{name}": value
            for name, value in values.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        for tracker in self.trackers:
            tracker.log(step, numbers)

    def close(self) -> None:
        """Write what is left."""
        for tracker in self.trackers:
            tracker.close()
        self.trackers = []

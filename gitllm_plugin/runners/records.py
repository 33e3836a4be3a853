"""The numbers of a run: one line per optimizer step or evaluation, for loss curves, and trackers beside the files."""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gitllm_plugin.common import ranks
from gitllm_plugin.common.files import write_atomically
from gitllm_plugin.common.run_files import read_records
from gitllm_plugin.errors import StorageError
from gitllm_plugin.runners.length import Position

if TYPE_CHECKING:
    from gitllm_plugin.common.progress import Progress

METRICS_FILE = "metrics.jsonl"
EVALUATIONS_FILE = "evaluations.jsonl"
TESTED = "tested.json"
APPENDED = (METRICS_FILE, EVALUATIONS_FILE, "log.txt", "evaluate.txt")
"""Files of a run to which lines are added; the last two are the host's and its tasks'."""


@dataclass
class StepRecord:
    """What one optimizer step did, over all ranks; a line of ``metrics.jsonl``.

    Attributes:
        step: counted from 0 over the run.
        epoch: counted from 0.
        iter: iterations done since the start of the run, this step's included.
        loss: mean over the step's supervised tokens, by their weights where they have any (over its batches where the
            task counts no tokens); None where it was not finite.
        lr: learning rate of the first parameter group.
        grad_norm: norm of the gradient before clipping; None where it was not finite.
        samples: number of examples.
        tokens: number of supervised tokens, or of batches where the task counts no tokens.
        seconds: time from the end of the step before; of steps whose numbers were read together, their mean.
        skipped: the ids of the step's examples where its gradient could not be used and the weights were left as they
            were; None for all other steps.
        logged: means over the step of what else the task computes; in the line under names of their own.
    """

    step: int
    epoch: int
    iter: int
    loss: float | None
    lr: float
    grad_norm: float | None
    samples: int
    tokens: int
    seconds: float
    skipped: list[str] | None = None
    logged: dict[str, float | None] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Give the record as plain values, without ``skipped`` where nothing was."""
        values = asdict(self)
        values |= values.pop("logged")
        if self.skipped is None:
            del values["skipped"]
        return values


class RecordsFile:
    """Appends records, each flushed at once, so that a run that is killed loses none.

    Args:
        path: the file; made if it does not exist.
    """

    def __init__(self, path: Path):
        self.file = open(path, "a")  # noqa: SIM115 - open as long as the epoch lasts

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record.

        Raises:
            StorageError: the disk is full.
        """
        try:
            self.file.write(json.dumps(record) + "\n")
            self.file.flush()
        except OSError as error:
            raise StorageError(f"{self.file.name} cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Close the file; what could not be written was reported when it was tried."""
        # Closing flushes once more what a full disk refused: the same error would hide the one that says so.
        with contextlib.suppress(OSError):
            self.file.close()


class StepLog:
    """Shows and keeps the steps of an epoch: in a file, in trackers and on the terminal. A context manager.

    Args:
        folder: the run's; the first rank's file of steps is in it.
        trackers: where numbers are sent to.
        bar: the run's progress.
    """

    def __init__(self, folder: Path, trackers: "Trackers", bar: "Progress"):
        self.file = RecordsFile(folder / METRICS_FILE) if ranks.rank() == 0 else None
        self.trackers = trackers
        self.bar = bar

    def __enter__(self) -> "StepLog":
        """Enter the bar too; the file is open since it was made."""
        self.bar.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the file, and leave the bar as it is."""
        self.bar.__exit__(*exception)
        if self.file is not None:
            self.file.close()

    def add(self, record: StepRecord) -> None:
        """Note a step.

        Raises:
            StorageError: the disk is full.
        """
        self.trackers.log(record.step + 1, "train", record.as_dict())
        if self.file is not None:
            self.file.write(record.as_dict())
        loss = "skipped" if record.loss is None else f"{record.loss:.4f}"
        self.bar.update(record.iter - self.bar.done, record.samples, loss=loss, lr=f"{record.lr:.1e}")


def take_out_lost_steps(path: Path, epoch: int, step: int) -> None:
    """Leave each step once in the records of a run to be resumed.

    Taken out are the records that a checkpoint does not hold, and a line cut off by a crash.

    Args:
        path: the file; nothing is done where it does not exist.
        epoch: the epoch in which the checkpoint stands.
        step: the steps that were done when it was written. Only in its epoch are they compared: another batch size
            numbers later epochs differently.
    """
    # A checkpoint is older than the last steps before a kill: the resumed run does and writes these again.
    if not path.is_file():
        return
    kept = [
        line
        for line, record in read_records(path, ("step", "epoch"))
        if record["epoch"] < epoch or (record["epoch"] == epoch and record["step"] < step)
    ]
    write_atomically(path, b"".join(kept))


def written_sizes(folder: Path) -> dict[str, int]:
    """Give the sizes, in bytes, that the files of :data:`APPENDED` have now; 0 where there is none yet."""
    paths = {name: folder / name for name in APPENDED}
    return {name: path.stat().st_size if path.is_file() else 0 for name, path in paths.items()}


def take_out_lost_lines(folder: Path, sizes: Mapping[str, Any], position: Position) -> None:
    """Leave in the files of a run to be resumed what stood there when its checkpoint was written.

    The run does again, and writes again, what came after it; whatever the lines say, each then stands once.

    Args:
        folder: the run's.
        sizes: what :func:`written_sizes` gave then. Files that it does not name stay as they are.
        position: where the checkpoint stands. If the test of the run's end was done from there, its lines stay.
    """
    tested = _read_tested(folder)
    if tested.get("iters") == position.iters and isinstance(tested.get("written"), dict):
        sizes = tested["written"]
    for name in APPENDED:
        path, size = folder / name, sizes.get(name)
        if not path.is_file() or type(size) is not int or size < 0:
            continue
        content = path.read_bytes()
        # Whole lines, also where somebody has changed the file since.
        kept = content[: content.rfind(b"\n", 0, size) + 1]
        if kept != content:
            write_atomically(path, kept)


def note_evaluation(folder: Path, split: str, position: Position, stats: Mapping[str, Any]) -> None:
    """Keep every evaluation of a training, for curves: LAVIS's log does not say at which step it was.

    A run that is killed before it has noted that an evaluation is done does it again: its line takes the other's place.
    """
    path = folder / EVALUATIONS_FILE
    place = {"split": split, "step": position.steps, "iter": position.iters, "epoch": position.last_epoch}
    record = {**place, **stats}
    others = [line for line, each in read_records(path) if not _is_same_evaluation(each, record, place)]
    write_atomically(path, b"".join([*others, f"{json.dumps(record)}\n".encode()]))


def _is_same_evaluation(one: Mapping[str, Any], other: Mapping[str, Any], place: Mapping[str, Any]) -> bool:
    # A split may be both validated on, which notes the best epoch, and tested on, with the best weights.
    same_kind = ("best_epoch" in one) == ("best_epoch" in other)
    return same_kind and all(one.get(key) == value for key, value in place.items())


def note_tested(folder: Path, position: Position, splits: Sequence[str]) -> None:
    """Let a run that was interrupted in its test be told from one that is done."""
    tested = {"iters": position.iters, "splits": list(splits), "written": written_sizes(folder)}
    write_atomically(folder / TESTED, json.dumps(tested) + "\n")


def is_tested(folder: Path, position: Position, splits: Sequence[str]) -> bool:
    """Tell whether the end of the run, as far as it is trained now, was evaluated on all of ``splits``."""
    tested = _read_tested(folder)
    done = tested.get("splits") if tested.get("iters") == position.iters else None
    return set(splits) <= set(done if isinstance(done, list) else ())


def _read_tested(folder: Path) -> dict[str, Any]:
    """Read what :func:`note_tested` wrote; nothing where there is none yet or it is damaged: it is done again."""
    try:
        tested = json.loads((folder / TESTED).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return tested if isinstance(tested, dict) else {}


class Tracker:
    """One place that numbers are sent to.

    Args:
        log: takes a step, counted from 1, and numbers by name.
        close: writes what is left.
    """

    def __init__(self, log: Callable[[int, Mapping[str, Any]], None], close: Callable[[], None]):
        self.log = log
        self.close = close


def _tensorboard(folder: Path, config: Mapping[str, Any]) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter

    # TensorBoard forgets what a run to be resumed had sent, of which a kill lost some and the run does some again;
    # what the run's files keep is sent anew.
    kept = _kept_records(folder)
    events = folder / "tensorboard"
    if kept:
        # TensorBoard reads files by the second in their names and a process number: the older could come last.
        for path in events.glob("events.out.tfevents.*"):
            path.unlink()
    writer = SummaryWriter(str(events), purge_step=0 if kept else None)

    def log(step: int, numbers: Mapping[str, Any]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    for step, prefix, record in kept:
        log(step, _numbers(prefix, record))
    return Tracker(log, writer.close)


def _wandb(folder: Path, config: Mapping[str, Any]) -> Tracker:
    import wandb

    # The folder's name, so that a resumed run goes on in its own page. Project and account are W&B's own
    # environment variables.
    run = wandb.init(dir=str(folder), name=folder.name, id=folder.name, resume="allow", config=dict(config))
    return Tracker(lambda step, numbers: run.log(dict(numbers), step=step), run.finish)


_OPEN = {"tensorboard": _tensorboard, "wandb": _wandb}
TRACKERS = tuple(_OPEN)
"""What ``run.trackers`` may name; each is also the package that it needs."""


def _numbers(prefix: str, values: Mapping[str, Any]) -> dict[str, float]:
    return {
        f"{prefix}/{name}": value
        for name, value in values.items()
        # Python's bools are ints; None stands for a step without a finite loss.
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def _kept_records(folder: Path) -> list[tuple[int, str, dict[str, Any]]]:
    """Give what a run's files say as it was sent to trackers: the step, counted from 1, a prefix and values."""
    steps = [record for _, record in read_records(folder / METRICS_FILE, ("step", "epoch"))]
    evaluations = [record for _, record in read_records(folder / EVALUATIONS_FILE)]
    trained = [(record["step"] + 1, "train", record) for record in steps]
    place = ("split", "step", "iter", "epoch")
    values = [{key: value for key, value in each.items() if key not in place} for each in evaluations]
    return trained + [(each["step"], str(each.get("split")), v) for each, v in zip(evaluations, values, strict=True)]


class Trackers:
    """All that the first rank of a run sends numbers to.

    Args:
        names: of :data:`TRACKERS`, each installed, which the declaration of ``run`` sees to; may be empty.
        folder: the run's.
        config: the resolved configuration.
    """

    def __init__(self, names: Sequence[str], folder: Path, config: Mapping[str, Any]):
        self.trackers = [_OPEN[name](folder, config) for name in names if ranks.rank() == 0]

    def log(self, step: int, prefix: str, values: Mapping[str, Any]) -> None:
        """Send the numbers among ``values``, each as ``prefix/name``; ``step`` counts from 1."""
        numbers = _numbers(prefix, values)
        for tracker in self.trackers:
            tracker.log(step, numbers)

    def close(self) -> None:
        """Write what is left."""
        for tracker in self.trackers:
            tracker.close()
        self.trackers = []

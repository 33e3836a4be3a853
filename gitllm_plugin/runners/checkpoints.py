"""The checkpoints of runs on disk: which there are, what they are called, when one is due, and how many are kept."""

import logging
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gitllm_plugin.common import ranks
from gitllm_plugin.common.files import link_or_copy, remove_unfinished
from gitllm_plugin.common.run_files import BEST, LATEST, STEPS, linked_run, run_folder_of
from gitllm_plugin.common.weights import (
    WEIGHTS_ENDING,
    is_readable,
    read_checkpoint,
    write_checkpoint,
    write_weights,
)
from gitllm_plugin.errors import ConfigError, StorageError


def find_resume_point(
    value: str,
    output_dir: Path,
    differences: Callable[[Mapping[str, Any]], Sequence[str]] = lambda content: (),
    hold: Callable[[Path], Any] = lambda folder: None,
) -> Path | None:
    """Find the file meant by ``run.resume_ckpt_path``.

    The newest checkpoint of a run is the one with most steps; times of files say when they were copied.

    Args:
        value: a file, a run's folder (its newest checkpoint), or ``auto`` (that of the newest run in ``output_dir``
            that is this one). Of several, one that cannot be read is passed over, with a warning.
        output_dir: ``run.output_dir``.
        differences: says what of a checkpoint's run is otherwise than in this one. ``auto`` passes such runs over,
            and tells of them where none is left; a run that was named is gone on with, with a warning.
        hold: is given the run's folder before it is decided which of its checkpoints is taken.

    Returns:
        the file, or None when ``auto`` finds none.

    Raises:
        ConfigError: the path has no checkpoint.
    """
    if value == "auto":
        return _find_same_run(output_dir, differences, hold)
    path = Path(value).expanduser()
    if path.is_file():
        hold(run_folder_of(path))
        _warn_of(path, differences)
        return path.resolve()
    if not path.is_dir():
        raise ConfigError(
            f"run.resume_ckpt_path is {value}, which does not exist; "
            "give a checkpoint, a run's folder, 'auto', or leave it out"
        )
    if _by_steps(path):
        hold(path)
    file = _newest_whole(path)
    if file is None:
        raise ConfigError(f"run.resume_ckpt_path is the folder {value}, which has no checkpoint that can be read")
    _warn_of(file, differences)
    return file.resolve()


def _find_same_run(output_dir: Path, differences: Callable, hold: Callable) -> Path | None:
    others: list[tuple[Path, Sequence[str]]] = []
    for folder in _runs_by_age(output_dir):
        for file in _by_steps(folder):
            content = _described(file)
            if content is None:
                continue
            if found := differences(content):
                others.append((folder, found))
                break
            hold(folder)
            if (whole := _newest_whole(folder)) is not None:
                return whole.resolve()
            break
    if others:
        folder, found = others[0]
        logging.warning(
            "run.resume_ckpt_path is auto, and none of the %d runs in %s that can be resumed is of this configuration. "
            "A new one is started. Of the newest, %s, these differ:\n  %s\nTo go on with it all the same, give "
            "run.resume_ckpt_path=%s",
            len(others),
            output_dir,
            folder.name,
            "\n  ".join(found),
            folder,
        )
    return None


def _warn_of(file: Path, differences: Callable) -> None:
    content = _described(file)
    if content is not None and (found := differences(content)):
        logging.warning("%s is of a run that was otherwise:\n  %s", file, "\n  ".join(found))


def _runs_by_age(output_dir: Path) -> list[Path]:
    """List folders of runs: first the one that was started or resumed last, then by their names, which have the time.

    Times of files change when a run is copied, and are wrong where a clock was.
    """
    # Links such as `latest` lead to folders that are found anyway.
    folders = [folder for folder in output_dir.glob("*") if folder.is_dir() and not folder.is_symlink()]
    last = linked_run(output_dir)

    def age(folder: Path) -> tuple[bool, int, int, str]:
        stamp = re.fullmatch(r"(\d{14})(?:_(\d+))?", folder.name)
        started, number = (int(stamp[1]), int(stamp[2] or 1)) if stamp else (-1, 0)
        return last is not None and folder.samefile(last), started, number, folder.name

    return sorted(folders, key=age, reverse=True)


def _by_steps(folder: Path) -> list[Path]:
    """List a run's checkpoints, those with most steps first."""
    # LAVIS's own runners write `checkpoint_<epoch>.pth`.
    files = [*folder.glob("checkpoint_*.pth"), *folder.glob(f"{STEPS}/step_*.pth")]

    def steps(file: Path) -> tuple[list[float], int, bool] | None:
        # Damaged ones first, unless their name says better, so that they are told of.
        content = _described(file) or {"steps": steps_in_name(file) or math.inf}
        done = [_number(content.get(key, -1)) for key in ("steps", "iters", "epoch")]
        if "steps" not in content:
            done[0] = steps_in_name(file) or -1
        try:
            # A file and its second name are one; of the two the name is meant, which is still there when others go.
            return done, file.stat().st_mtime_ns, file.name == LATEST
        except OSError:  # whoever trains the run has just deleted it
            return None

    known = [(key, file) for file in files if (key := steps(file)) is not None]
    return [file for _, file in sorted(known, key=lambda entry: entry[0], reverse=True)]


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else -1.0


def _newest_whole(folder: Path) -> Path | None:
    for file in _by_steps(folder):
        if is_readable(file):
            return file
        logging.warning("%s is damaged; the checkpoint before it is taken.", file)
    return None


def _described(file: Path) -> dict[str, Any] | None:
    """Read what a checkpoint holds besides its tensors; None where it cannot be read."""
    try:
        return read_checkpoint(file, mmap=True)
    except ConfigError:
        return None


def steps_in_name(file: Path) -> int | None:
    """Read the steps out of the name of a file in :data:`STEPS`; None where it is another name."""
    match = re.fullmatch(r"step_(\d{1,18})\.pth", file.name)
    return int(match[1]) if match else None


class CheckpointFolder:
    """Writes checkpoints so that at any time the newest whole one can be found.

    Each is ``checkpoints/step_<steps>.pth``, with its weights once more beside it as ``.safetensors``, for all that
    reads that. ``checkpoint_latest`` and ``checkpoint_best`` are second names (hard links) of the newest and the best
    one, so they hold what they say whichever of the others are deleted.

    Args:
        run_folder: the run's folder.
        keep_last: how many of the newest are kept.
    """

    def __init__(self, run_folder: Path, keep_last: int = 1):
        self.run_folder = run_folder
        self.folder = run_folder / STEPS
        self.keep_last = keep_last

    @property
    def latest(self) -> Path:
        """The newest one, under the name that it always has."""
        return self.run_folder / LATEST

    @property
    def best(self) -> Path:
        """The best one, under the name that it always has."""
        return self.run_folder / BEST

    def write(self, content: dict[str, Any], best_steps: list[int]) -> Path:
        """Write a checkpoint, then delete those that are not to be kept.

        Args:
            content: see :mod:`gitllm_plugin.runners.state`.
            best_steps: the steps of the best scores, best first; these are kept.

        Returns:
            ``checkpoint_latest.pth``.

        Raises:
            StorageError: it cannot be written; the ones before it are whole.
        """
        path = self._path(content["steps"])
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise StorageError(f"{self.folder} cannot be made: {error.strerror}") from error
        # The resumable file last of the two: where it is, its weights are too, whenever the process is killed.
        write_weights(path.with_suffix(WEIGHTS_ENDING), content["model"], steps=content["steps"])
        write_checkpoint(path, content)
        self._name(path, self.latest)
        self.name_best(best_steps)
        self._delete_others(content["steps"], best_steps)
        return self.latest

    def name_best(self, best_steps: list[int]) -> None:
        """Let ``checkpoint_best`` be the best one, where it is still there."""
        path = self._path(best_steps[0]) if best_steps else None
        if path is not None and path.is_file() and not (self.best.is_file() and self.best.samefile(path)):
            self._name(path, self.best)

    def tidy(self) -> None:
        """Remove what was half written when an earlier process was killed."""
        for folder in (self.run_folder, self.folder):
            remove_unfinished(folder)

    def _path(self, steps: int) -> Path:
        return self.folder / f"step_{steps:08d}.pth"

    @staticmethod
    def _name(path: Path, name: Path) -> None:
        """Give both files of a checkpoint another name."""
        # The resumable file last, as when writing.
        for ending in (WEIGHTS_ENDING, path.suffix):
            link_or_copy(path.with_suffix(ending), name.with_suffix(ending))

    def _delete_others(self, steps: int, best_steps: list[int]) -> None:
        # By steps and not by time: clocks are set back. What has more steps than were done now is of the future that a
        # run had before it was resumed from an earlier checkpoint, and would be taken for the newest.
        done = {path: number for path in self.folder.glob("step_*.pth") if (number := steps_in_name(path)) is not None}
        newest = sorted((path for path in done if done[path] <= steps), key=lambda path: done[path], reverse=True)
        kept = {*newest[: self.keep_last], *map(self._path, best_steps)}
        for path in done:
            if path not in kept:
                path.unlink()
                path.with_suffix(WEIGHTS_ENDING).unlink(missing_ok=True)


class SavingTimes:
    """Asks for a checkpoint every so many optimizer steps or minutes, whichever is first.

    Only rank 0 has a clock; the training loop tells the others.

    Args:
        every_steps: None for never.
        every_minutes: None for never.
        clock: gives seconds.
    """

    def __init__(
        self,
        every_steps: int | None = None,
        every_minutes: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.every_steps = every_steps
        self.every_minutes = every_minutes
        self.clock = clock
        self.saved_at = clock()

    def by_steps(self, steps: int) -> bool:
        """Tell whether one is due because ``steps`` steps of the run are done; the same on all ranks."""
        return self.every_steps is not None and steps % self.every_steps == 0

    def by_minutes(self) -> bool:
        """Tell whether one is due because of the time; on rank 0 only."""
        if self.every_minutes is None or ranks.rank() != 0:
            return False
        return self.clock() - self.saved_at >= 60 * self.every_minutes

    def note_saved(self) -> None:
        """Note that a checkpoint was written now."""
        self.saved_at = self.clock()

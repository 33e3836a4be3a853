"""The checkpoints of runs on disk: which there are, what they are called, when one is due, and how many are kept."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gitllm_plugin.common import ranks
from gitllm_plugin.common.files import remove_unfinished
from gitllm_plugin.common.run_files import BEST, LATEST, STEPS
from gitllm_plugin.common.weights import (
    WEIGHTS_ENDING,
    is_readable,
    link_checkpoint,
    write_checkpoint,
    write_weights,
)
from gitllm_plugin.errors import ConfigError, StorageError


def find_resume_point(value: str, output_dir: Path) -> Path | None:
    """Find the file meant by ``run.resume_ckpt_path``.

    Args:
        value: a file, a run's folder (its newest checkpoint), or ``auto`` (the newest in ``output_dir``). Of several,
            one that cannot be read is passed over, with a warning.
        output_dir: ``run.output_dir``.

    Returns:
        the file, or None when ``auto`` finds none.

    Raises:
        ConfigError: the path has no checkpoint.
    """
    path = Path(value).expanduser()
    if value != "auto" and not path.is_dir():
        if not path.is_file():
            raise ConfigError(
                f"run.resume_ckpt_path is {value}, which does not exist; "
                "give a checkpoint, a run's folder, 'auto', or leave it out"
            )
        return path.resolve()
    # Links such as `latest` lead to folders that are found anyway.
    folders = [path] if value != "auto" else [f for f in output_dir.glob("*") if not f.is_symlink()]
    found = [file for folder in folders for file in _checkpoints_in(folder)]
    for file in sorted(found, key=_age, reverse=True):
        if is_readable(file):
            return file.resolve()
        logging.warning("%s is damaged; the checkpoint before it is taken.", file)
    if value != "auto":
        raise ConfigError(f"run.resume_ckpt_path is the folder {value}, which has no checkpoint that can be read")
    return None


def _checkpoints_in(folder: Path) -> list[Path]:
    # LAVIS's own runners write `checkpoint_<epoch>.pth`.
    return [*folder.glob("checkpoint_*.pth"), *folder.glob(f"{STEPS}/step_*.pth")]


def _age(file: Path) -> tuple[int, bool]:
    # A file and its second name are of one age; of the two the name is meant, which is still there when others go.
    return file.stat().st_mtime_ns, file.name == LATEST


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
        self._delete_others(best_steps)
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
            link_checkpoint(path.with_suffix(ending), name.with_suffix(ending))

    def _delete_others(self, best_steps: list[int]) -> None:
        # By the time of writing and not by number: a run resumed from an earlier step counts up to newer ones again.
        by_age = sorted((path.stat().st_mtime_ns, path) for path in self.folder.glob("step_*.pth"))
        newest = [path for _, path in reversed(by_age)]
        kept = {*newest[: self.keep_last], *map(self._path, best_steps)}
        for path in newest:
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

"""The checkpoints of one run on disk: which there are, what they are called, and how many are kept."""

from pathlib import Path
from typing import Any

from gitllm_plugin.common.files import remove_unfinished
from gitllm_plugin.common.weights import (
    WEIGHTS_ENDING,
    link_checkpoint,
    write_checkpoint,
    write_weights,
)
from gitllm_plugin.errors import StorageError
from gitllm_plugin.runners.checkpoints import BEST, LATEST, STEPS


class CheckpointFolder:
    """Writes checkpoints so that at any time the newest whole one can be found.

    Each is `checkpoints/step_<steps>.pth`, with its weights once more beside it as `.safetensors`, for all that
    reads that. `checkpoint_latest` and `checkpoint_best` are second names (hard links) of the newest and the best
    one, so they hold what they say whichever of the others are deleted.

    Args:
        run_folder: The run's folder.
        keep_last: How many of the newest are kept.
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
            content: See `gitllm_plugin.runners.checkpoints`.
            best_steps: The steps of the best scores, best first; these are kept.

        Returns:
            `checkpoint_latest.pth`.

        Raises:
            StorageError: It cannot be written; the ones before it are whole.
        """
        path = self._path(content["steps"])
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise StorageError(f"{self.folder} cannot be made: {error.strerror}") from error
        write_weights(path.with_suffix(WEIGHTS_ENDING), content["model"], steps=content["steps"])
        write_checkpoint(path, content)
        self._name(path, self.latest)
        self.name_best(best_steps)
        self._delete_others(best_steps)
        return self.latest

    def name_best(self, best_steps: list[int]) -> None:
        """Let `checkpoint_best` be the best one, where it is still there."""
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
        for ending in (WEIGHTS_ENDING, path.suffix):
            link_checkpoint(path.with_suffix(ending), name.with_suffix(ending))

    def _delete_others(self, best_steps: list[int]) -> None:
        by_age = sorted((path.stat().st_mtime_ns, path) for path in self.folder.glob("step_*.pth"))
        newest = [path for _, path in reversed(by_age)]
        kept = {*newest[: self.keep_last], *map(self._path, best_steps)}
        for path in newest:
            if path not in kept:
                path.unlink()
                path.with_suffix(WEIGHTS_ENDING).unlink(missing_ok=True)

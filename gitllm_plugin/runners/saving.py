"""Saving a run and taking it up again."""

import logging
from pathlib import Path
from typing import Any

import torch

from gitllm_plugin.common import ranks
from gitllm_plugin.common.weights import read_checkpoint
from gitllm_plugin.runners import messages
from gitllm_plugin.runners.checkpoint_folder import CheckpointFolder
from gitllm_plugin.runners.checkpoints import load_trainable_state
from gitllm_plugin.runners.metrics_file import EVALUATIONS_FILE, METRICS_FILE, take_out_lost_steps
from gitllm_plugin.runners.parts import RunnerParts
from gitllm_plugin.runners.saving_times import SavingTimes
from gitllm_plugin.runners.training_state import TrainingState


class SavingRunner(RunnerParts):
    """A runner's checkpoints.

    Attributes:
        checkpoints: On disk.
        saving_times: When one is due within an epoch.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        run_cfg = self.config.run_cfg
        self.checkpoints = CheckpointFolder(self.output_dir, int(run_cfg.keep_last))
        self.saving_times = SavingTimes(run_cfg.get("save_every_steps"), run_cfg.get("save_every_minutes"))

    @property
    def _state(self) -> TrainingState:
        return TrainingState(
            model=self.unwrap_dist_model(self.model),
            optimizer=self.optimizer,
            scaler=self.scaler,
            schedule=self.lr_scheduler,
            length=self.length,
            data=self.data,
            config=self._plain_config(),
        )

    def _save(self) -> None:
        """Repairs: a crash destroys the file, tied frozen weights get in, score and position are lost."""
        content = self._state.gather(self.progress)
        best_steps = self.progress.best.steps
        path = ranks.from_first_rank(lambda: self.checkpoints.write(content, best_steps))
        self.saving_times.note_saved()
        logging.info("Saved %s after %d steps.", path, self.position.steps)

    def _save_checkpoint(self, cur_epoch: int, is_best: bool = False) -> None:
        """The host's name for saving."""
        self._save()

    def _reload_best_model(self, model: torch.nn.Module) -> torch.nn.Module:
        """Repairs: fails where there is no best checkpoint, and hides weights that do not fit."""
        path = self.checkpoints.best
        if path.is_file():
            load_trainable_state(model, read_checkpoint(path)["model"], str(path))
            logging.info("Loaded %s.", path)
        else:
            logging.info("There is no %s in this run's folder: evaluating the weights as they are.", path.name)
        return model

    def _load_checkpoint(self, url_or_filename: str | Path) -> None:
        """Repairs: fails when weights are frozen, runs code that the file holds, forgets the best score.

        Raises:
            ConfigError: Not a checkpoint, or one of another model.
        """
        path = Path(url_or_filename)
        content = read_checkpoint(path)
        self._state.restore(content, self.progress, str(path))
        self.progress.validation_due &= len(self.valid_splits) > 0
        self.start_epoch = self.position.epoch
        ranks.from_first_rank(lambda: self._take_up_folder(content))
        position = self.position
        logging.info(
            "Resuming %s after %d iterations (%d of epoch %d).",
            path,
            position.iters,
            position.epoch_iter,
            position.epoch + 1,
        )

    def _take_up_folder(self, content: dict[str, Any]) -> None:
        """Take out of the run's files what came after the checkpoint, and what was half written."""
        self.checkpoints.tidy()
        self.checkpoints.name_best(self.progress.best.steps)
        if "steps" in content:
            epoch, steps = int(content["epoch"]) + 1, int(content["steps"])
            take_out_lost_steps(self.output_dir / METRICS_FILE, epoch, steps)
            take_out_lost_steps(self.output_dir / EVALUATIONS_FILE, epoch, steps + 1)

    def _say_how_to_resume(self, what: str) -> None:
        """What is kept, what is lost, and the command that goes on; on rank 0."""
        if ranks.rank() != 0:
            return
        latest, saved, rest = self.checkpoints.latest, None, ""
        if latest.is_file():
            saved = self.length.continue_from(read_checkpoint(latest, mmap=True), self.data.streaming)
            is_trained = self.length.is_finished(saved) and not self.progress.validation_due
            rest = "the test" if is_trained and self.test_splits else ""
        messages.say_how_to_resume(what, self.config, self.checkpoints, saved, rest)

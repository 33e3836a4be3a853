"""Runner `git_llm`: LAVIS's runner made to work on CPU and GPU, in one process or several, and to resume."""

import datetime
import logging
import time
from typing import Any

from lavis.common.registry import registry

from gitllm_plugin.common import ranks
from gitllm_plugin.common.progress import Progress
from gitllm_plugin.config.run import RunSettings
from gitllm_plugin.curves.draw import draw_run
from gitllm_plugin.errors import StorageError
from gitllm_plugin.runners import messages, settings
from gitllm_plugin.runners.evaluating import EvaluatingRunner
from gitllm_plugin.runners.evaluations import note_tested
from gitllm_plugin.runners.interrupts import Preempted
from gitllm_plugin.runners.loop import DataEndedError, NonFiniteLossError, Requests, StepRecord, TrainingLoop
from gitllm_plugin.runners.metrics_file import METRICS_FILE, MetricsFile
from gitllm_plugin.runners.schedule import DECAYS, StepSchedule
from gitllm_plugin.runners.tracking import Trackers
from gitllm_plugin.runners.training_state import EpochTotals
from gitllm_plugin.runners.watchdog import Watchdog

# LAVIS and the check of configurations look schedules up in LAVIS's registry.
for _name in DECAYS:
    registry.register_lr_scheduler(_name)(StepSchedule)


@registry.register_runner("git_llm")
class GitLLMRunner(EvaluatingRunner):
    """Trains and evaluates by epochs or iterations; runs LAVIS's tasks, data sets and configurations.

    What differs from LAVIS's `RunnerBase` is a method that says which of its defects it repairs: parts in
    `parts.py`, checkpoints in `saving.py`, evaluation in `evaluating.py`, training here.
    """

    Settings = RunSettings

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._loop: TrainingLoop | None = None
        self._watchdog = Watchdog(float(self.config.run_cfg.step_timeout_minutes))

    def train(self) -> None:
        """Train to `run.max_epoch` or `run.max_iters`, evaluate after each epoch, then test the best weights.

        With `run.evaluate` nothing is trained: the given weights are evaluated on all splits named. SIGTERM and
        SIGUSR1 end the training early: it is saved, and the method returns as if it were done.

        Repairs: needs a process group, loses the best checkpoint when the score is negative, saves nothing to
        resume from when there is validation.

        Raises:
            ConfigError: The run cannot be trained as configured.
            NonFiniteLossError: Too many steps in a row could not be used; what is good is saved.
            StorageError: A file of the run cannot be written.
            KeyboardInterrupt: After saving and saying how to resume.
        """
        if self.evaluate_only:
            self._check_splits([*self.valid_splits])
            self._validate_only()
            self.evaluate(skip_reload=True)
            return
        began = time.monotonic()
        with self.stop:
            try:
                if not self._train_and_test():
                    return
            except Preempted as preempted:
                self._say_how_to_resume(f"Stopped by {preempted}")
                return
            except KeyboardInterrupt:
                self._say_how_to_resume("Interrupted")
                raise
            except (StorageError, NonFiniteLossError, DataEndedError):
                self._say_how_to_resume("Stopped")
                raise
            finally:
                if self._data is not None:
                    self._data.close()
                if self.trackers is not None:
                    self.trackers.close()
        seconds = int(time.monotonic() - began)
        logging.info("Training time %s. Output: %s", datetime.timedelta(seconds=seconds), self.output_dir)

    def _train_and_test(self) -> bool:
        """Do what is left to do; gives whether there was anything."""
        with self.stop.at_once():
            self._prepare_training()
        is_trained = self.length.is_finished(self.position) and not self.progress.validation_due
        if is_trained and self._is_tested():
            length, config = self.length, self.config
            messages.say_nothing_to_do(config, self.checkpoints, self.position, length, self._resume_from)
            return False
        self._train_epochs()
        with self.stop.at_once():
            self._test(cur_epoch="best" if self.valid_splits else self.position.last_epoch, skip_reload=False)
        ranks.from_first_rank(self._finish_folder)
        return True

    def _finish_folder(self) -> None:
        """Draw the losses, and note that all is done."""
        draw_run(self.output_dir)
        note_tested(self.output_dir, self.position, self.test_splits)

    def _prepare_training(self) -> None:
        """Check what can be checked before the first step, and take up a run to be resumed."""
        run_cfg = self.config.run_cfg
        settings.check_training_settings(run_cfg)
        self._check_splits([*self.train_splits, *self.valid_splits, *self.test_splits])
        if self._resume_from is not None:
            self._load_checkpoint(self._resume_from)
        elif self.resume_ckpt_path is not None:
            logging.info("run.resume_ckpt_path is auto and there is no run to resume: starting a new one.")
        self._describe_run("latest")
        names = run_cfg.trackers if ranks.rank() == 0 else []
        self.trackers = Trackers(names, self.output_dir, self._plain_config())

    def _train_epochs(self) -> None:
        if self.progress.validation_due:
            self._validate(self.position.last_epoch)
        while not self.length.is_finished(self.position):
            stats = self.train_epoch(self.position.epoch)
            self.log_stats(stats, "train")
            self.progress.validation_due = len(self.valid_splits) > 0
            self._save()
            if self.progress.validation_due:
                self._validate(self.position.last_epoch)
            ranks.barrier()

    @property
    def loop(self) -> TrainingLoop:
        """The training loop, one for all epochs."""
        if self._loop is None:
            run_cfg = self.config.run_cfg
            self._loop = TrainingLoop(
                task=self.task,
                model=self.model,
                optimizer=self.optimizer,
                schedule=self.lr_scheduler,
                scaler=self.scaler,
                device=self.device,
                autocast=self._autocast,
                seed=int(run_cfg.seed),
                accum_grad_iters=self.accum_grad_iters,
                max_grad_norm=float(run_cfg.max_grad_norm),
                max_skipped_steps=int(run_cfg.max_skipped_steps),
                at=self._watchdog.at,
            )
        return self._loop

    def train_epoch(self, epoch: int) -> dict[str, str]:
        """Train what is left of an epoch.

        Repairs: the task's own loop needs CUDA, knows no clipping, synchronises on every accumulated batch,
        drops the last of them, and averages means of unequal weight.

        Returns:
            Averages in LAVIS's form, as texts.

        Raises:
            KeyboardInterrupt: After Ctrl-C, with a checkpoint written.
            Preempted: After another signal, the same.
        """
        self.model.train()
        loop = self.loop
        last_iter = self.length.last_iter(self.position)
        try:
            with self._watchdog:
                self._run_loop(loop, last_iter)
        except (NonFiniteLossError, DataEndedError):
            self._save()
            raise
        if self.position.epoch_iter == self.length.iters_per_epoch:
            self.position.epoch, self.position.epoch_iter = epoch + 1, 0
        averages = self.progress.totals.averages()
        if self.position.epoch_iter == 0 or not loop.stopped:
            self.progress.totals = EpochTotals()
        if loop.stopped:
            if self.position.epoch_iter == 0:
                self.log_stats(averages, "train")
                self.progress.validation_due = len(self.valid_splits) > 0
            self._save()
            self.stop.stop()
        return averages

    def _run_loop(self, loop: TrainingLoop, last_iter: int) -> None:
        """Run the loop, showing and writing every step, and saving when it is due."""
        start = self.position.epoch_iter
        metrics = MetricsFile(self.output_dir / METRICS_FILE) if ranks.rank() == 0 else None
        title = f"epoch {self.position.epoch + 1}/{self.length.max_epoch}"
        requests = Requests(stop=lambda: self.stop.requested, save=self.saving_times.by_minutes)
        try:
            with Progress(title, last_iter, start, self.log_freq) as bar:
                for record in loop.run(self.data, self.position, last_iter, requests):
                    self._note_step(record)
                    if metrics is not None:
                        metrics.write(record.as_dict())
                    iterations = self.position.epoch_iter - bar.done
                    loss = "skipped" if record.loss is None else f"{record.loss:.4f}"
                    bar.update(iterations, record.samples, record.tokens, loss=loss, lr=f"{record.lr:.2e}")
                    due = loop.save_requested or self.saving_times.by_steps(self.position.steps)
                    if due and not loop.stopped and self.position.epoch_iter < last_iter:
                        self._watchdog.at("saving")
                        self._save()
        finally:
            if metrics is not None:
                metrics.close()

    def _note_step(self, record: StepRecord) -> None:
        if record.loss is not None:
            self.progress.totals.add(record.loss, record.tokens, record.lr)
        if self.trackers is not None:
            self.trackers.log(record.step + 1, "train", record.as_dict())

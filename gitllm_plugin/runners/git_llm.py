"""Runner ``git_llm``: LAVIS's runner made to work on CPU and GPU, in one process or several, and to resume."""

import contextlib
import logging
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lavis.common.dist_utils import main_process
from lavis.common.registry import registry
from lavis.runners.runner_base import RunnerBase

from gitllm_plugin.common import ranks
from gitllm_plugin.common.files import storage_errors
from gitllm_plugin.common.lost_processes import lost_processes_explained
from gitllm_plugin.common.progress import Progress
from gitllm_plugin.common.run_files import LATEST_EVALUATION, LATEST_RUN
from gitllm_plugin.config.run import RunSettings
from gitllm_plugin.curves.draw import draw_run
from gitllm_plugin.errors import ConfigError, LostProcessError, StorageError
from gitllm_plugin.runners import messages, parallel, records, settings
from gitllm_plugin.runners.evaluating import evaluate_split, load_best, note_score, use_trained_weights
from gitllm_plugin.runners.first_screen import first_screen
from gitllm_plugin.runners.interrupts import Preempted, StopRequest
from gitllm_plugin.runners.length import Position
from gitllm_plugin.runners.loop import DataEndedError, NonFiniteLossError, Requests, TrainingLoop
from gitllm_plugin.runners.optimizer import DECAYS, StepSchedule
from gitllm_plugin.runners.run import RunParts, introduce
from gitllm_plugin.runners.run_folder import describe
from gitllm_plugin.runners.state import BestScores, TrainingProgress

# LAVIS and the check of configurations look schedules up in LAVIS's registry.
for _name in DECAYS:
    registry.register_lr_scheduler(_name)(StepSchedule)


def _part(name: str, doc: str) -> Any:
    """Make a property that gives a part of the run under the name that the host has for it."""
    return property(lambda runner: getattr(runner.parts, name), doc=doc)


@registry.register_runner("git_llm")
class GitLLMRunner(RunnerBase):
    """Trains and evaluates by epochs or iterations; runs LAVIS's tasks, data sets and configurations.

    What differs from LAVIS's ``RunnerBase`` is a method that says which of its defects it repairs.

    Args:
        cfg: LAVIS's ``Config``.
        task: LAVIS's task.
        model: on any device; moved to the run's.
        datasets: by data set name, then by split.
        job_id: not used: the folder's name is its own, made by rank 0.

    Attributes:
        parts: what the run is made of.
        progress: how far training is.
        stop: signals that end the run.
        trackers: where numbers are sent to as well.

    Raises:
        ConfigError: the output folder or the checkpoint to resume from cannot be had, or model, data and task do not
            fit the runner or each other.
    """

    Settings = RunSettings

    def __init__(self, cfg: Any, task: Any, model: torch.nn.Module, datasets: dict, job_id: str):
        introduce(model, task, datasets)
        settings.fill_defaults(cfg.run_cfg)
        self.parts = RunParts(cfg, model, datasets)
        self.progress = TrainingProgress(BestScores(str(cfg.run_cfg.best), int(cfg.run_cfg.keep_best)))
        self.stop = StopRequest()
        super().__init__(cfg, task, model, datasets, job_id)
        self.trackers = records.Trackers([], self.output_dir, {})
        self._watchdog = parallel.Watchdog(float(cfg.run_cfg.step_timeout_minutes))

    # ------------------------------------------------------------------ the host's names of the parts

    device = _part("device", "Repairs: ``auto`` is not known, and ``cuda`` is the same GPU for every rank.")
    dtype = _part("dtype", "Repairs: the only reduced precision is fp16.")
    scaler = _part("scaler", "Repairs: the scaler is for GPUs only.")
    model = _part("model", "Repairs: is None where it already is on the device, and gives DDP device ids on a CPU.")
    optimizer = _part("optimizer", "Repairs: rates cannot differ by parameter; letters within names decide on decay.")
    lr_scheduler = _part("schedule", "Repairs: the rate changes per epoch only; LAVIS's own schedulers keep working.")
    dataloaders = _part("loaders", "Repairs: loaders for evaluation need CUDA; distributed, they repeat examples.")
    valid_splits = _part("valid_splits", "Repairs: where there are none, a line of the log says so at every look.")
    train_loader = _part("data", "Repairs: streams need a length, mixtures a runner of their own; none is resumed.")

    @property
    def use_distributed(self) -> bool:
        """Repairs: ``distributed: True`` in a config is believed where no process group exists."""
        return ranks.is_distributed()

    def unwrap_dist_model(self, model: torch.nn.Module) -> torch.nn.Module:
        """Give the model itself. Repairs: a model that is not wrapped is unwrapped all the same."""
        return parallel.unwrap(model)

    def _check_splits(self, *names: str) -> None:
        self.parts.check_splits(names, self.task)
        self.datasets = self.parts.splits  # as the host's own attribute turns from names to splits

    @property
    def max_epoch(self) -> int:
        """Repairs: ``max_iters`` needs another runner than ``max_epoch``, which streaming data cannot have."""
        return self.parts.length.max_epoch

    @property
    def position(self) -> Position:
        """Where training stands."""
        return self.progress.position

    @property
    def best_agg_metric(self) -> float | None:
        """Best validation score so far, None before the first."""
        return self.progress.best.score

    @property
    def best_epoch(self) -> int | None:
        """Its epoch."""
        return self.progress.best.epoch

    # ------------------------------------------------------------------ the folder

    def setup_output_dir(self) -> None:
        """Make or find the run's folder.

        Repairs: runs land inside the installed package, in one folder when started in the same minutes. The folder is
        unique, below the working directory or wherever ``run.output_dir`` says, and the same on all ranks; a resumed
        run goes on in its own.
        """
        self.output_dir = self.parts.folder
        self.result_dir = self.output_dir / "result"
        # Not registry.register_path, which refuses to set a path twice: a second run in one process would fail.
        registry.mapping["paths"]["output_dir"] = str(self.output_dir)
        registry.mapping["paths"]["result_dir"] = str(self.result_dir)

    def log_stats(self, stats: dict[str, Any], split_name: str) -> None:
        """Add a line to LAVIS's log. Repairs: a full disk is a traceback."""
        with storage_errors(str(self.output_dir / "log.txt")):
            super().log_stats(stats, split_name)

    def _describe_run(self, link: str) -> None:
        """Write how the run was made, and let ``link`` beside the folder point to it."""

        def write() -> None:
            with storage_errors(str(self.output_dir / "log.txt")):
                self.log_config()
            trained = sum(p.numel() for p in self._model.parameters() if p.requires_grad)
            describe(self.output_dir, self.config.config, link, trained_parameters=trained)

        ranks.from_first_rank(write)

    # ------------------------------------------------------------------ training

    def train(self) -> None:
        """Train to ``run.max_epoch`` or ``run.max_iters``, evaluate after each epoch, then test the best weights.

        With ``run.evaluate`` nothing is trained: the given weights are evaluated on all splits named. SIGTERM and
        SIGUSR1 end the training early: it is saved, and the method returns as if it were done.

        Repairs: needs a process group, loses the best checkpoint when the score is negative, saves nothing to
        resume from when there is validation.

        Raises:
            ConfigError: the run cannot be trained as configured.
            NonFiniteLossError: too many steps in a row could not be used; what is good is saved.
            StorageError: a file of the run cannot be written.
            LostProcessError: a worker of a data loader was killed, or another rank is gone.
            KeyboardInterrupt: after Ctrl-C, with all saved and said how to resume.
        """
        if self.evaluate_only:
            return self._evaluate_only()
        with self._until_stopped():
            with self.stop.at_once():
                self._prepare_training()
            if self._is_done():
                return messages.say_nothing_to_do(self.parts, self.position)
            logging.info("%s", first_screen(self.parts, self.task))
            with self._watchdog:
                self._train_and_test()
            messages.say_done(self.parts, self._bar.began)

    def _train_and_test(self) -> None:
        self._validate_if_due()  # of a run that was stopped in its last evaluation
        while not self.parts.length.is_finished(self.position):
            self._note_epoch(self.train_epoch(self.position.epoch))
            # Before the validation, so that one that fails or is interrupted loses nothing of the training.
            self._watchdog.at("saving")
            self.parts.saving.save(self.progress)
            self._validate_if_due()
            ranks.barrier()
        with self.stop.at_once():
            self._test(cur_epoch="best" if self.valid_splits else self.position.last_epoch, skip_reload=False)
        ranks.from_first_rank(self._finish_folder)

    @contextlib.contextmanager
    def _until_stopped(self) -> Iterator[None]:
        """Take over the signals, say how to resume where the block is left early, and end what works beside it."""
        with self.stop:
            try:
                with lost_processes_explained(self.parts.run_cfg, ("batch_size_train", "batch_size_eval")):
                    yield
            except Preempted as preempted:
                messages.say_how_to_resume(f"Stopped by {preempted}", self.parts, self.progress)
            except KeyboardInterrupt:
                messages.say_how_to_resume("Interrupted", self.parts, self.progress)
                raise
            except (StorageError, LostProcessError, NonFiniteLossError, DataEndedError):
                messages.say_how_to_resume("Stopped", self.parts, self.progress)
                raise
            finally:
                self.trackers.close()
                self.parts.close()

    def _prepare_training(self) -> None:
        """Check what can be checked before the first step, and take up a run to be resumed."""
        settings.check_training_settings(self.config.run_cfg)
        ranks.from_first_rank(self.parts.hold_folder)
        self._check_splits(*self.train_splits, *self.valid_splits, *self.test_splits)
        if self.parts.resume_from is not None:
            self._load_checkpoint(self.parts.resume_from)
        elif self.resume_ckpt_path is not None:
            logging.info("run.resume_ckpt_path is auto and there is no run to resume: starting a new one.")
        self._describe_run(LATEST_RUN)
        self.trackers = records.Trackers(self.config.run_cfg.trackers, self.output_dir, self.parts.plain_config)

    def _is_done(self) -> bool:
        if self.progress.validation_due or not self.parts.length.is_finished(self.position):
            return False
        return ranks.from_first_rank(lambda: records.is_tested(self.output_dir, self.position, self.test_splits))

    def _finish_folder(self) -> None:
        """Draw the losses, and note that all is done."""
        draw_run(self.output_dir)
        records.note_tested(self.output_dir, self.position, self.test_splits)

    @cached_property
    def loop(self) -> TrainingLoop:
        """The training loop, one for all epochs."""
        return self.parts.build_loop(self.task, at=self._watchdog.at)

    def train_epoch(self, epoch: int) -> dict[str, str]:
        """Train what is left of an epoch, showing and writing every step, and saving when it is due.

        Repairs: the task's own loop needs CUDA, knows no clipping, synchronises on every accumulated batch,
        drops the last of them, and averages means of unequal weight.

        Returns:
            averages in LAVIS's form, as texts.

        Raises:
            KeyboardInterrupt: after Ctrl-C, with a checkpoint written.
            Preempted: after another signal, the same.
        """
        loop, parts, position = self.loop, self.parts, self.position
        last_iter, times = parts.length.last_iter(position), parts.saving_times
        parts.model.train()
        requests = Requests(lambda: self.stop.requested, times.by_minutes, times.by_steps)
        try:
            self._bar.description = f"epoch {position.epoch + 1}/{parts.length.num_epochs}"
            with self._watchdog, records.StepLog(self.output_dir, self.trackers, self._bar) as log:
                for record in loop.run(parts.data, position, last_iter, requests):
                    if record.loss is not None:
                        self.progress.totals.add(record.loss, record.tokens, record.lr)
                    log.add(record)
                    # Of steps that are read together, behind the last one.
                    due = record.step + 1 == position.steps and (loop.save_requested or times.by_steps(position.steps))
                    # A loop that ends with this step is saved behind it, with the epoch's end noted.
                    if due and not loop.stopped and position.epoch_iter < last_iter:
                        self._watchdog.at("saving")
                        parts.saving.save(self.progress)
        except (NonFiniteLossError, DataEndedError):
            # All ranks raise it after the same step, and no weight was changed by what was wrong.
            self.parts.saving.save(self.progress)
            raise
        averages = self.progress.end_stretch(parts.length.iters_per_epoch, loop.stopped)
        if loop.stopped:
            if position.epoch_iter == 0:
                self._note_epoch(averages)
            self.parts.saving.save(self.progress)
            self.stop.stop()
        return averages

    def _note_epoch(self, averages: dict[str, str]) -> None:
        """Log an epoch that is trained, and note that it has to be evaluated."""
        self.log_stats(averages, "train")
        self.progress.validation_due = len(self.valid_splits) > 0

    @cached_property
    def _bar(self) -> Progress:
        """How far the run is; its time is measured from here on."""
        return Progress("", self.parts.length.total_iters, self.position.iters, self.log_freq, at_end=True)

    # ------------------------------------------------------------------ checkpoints

    def _save_checkpoint(self, cur_epoch: int, is_best: bool = False) -> None:
        """Save, by the host's name and with its arguments, which say nothing that the progress does not know.

        Repairs: a crash destroys the file, tied frozen weights get in, score and position are lost.
        """
        self.parts.saving.save(self.progress)

    def _reload_best_model(self, model: torch.nn.Module) -> torch.nn.Module:
        """Load the best weights. Repairs: fails where there are none, and hides weights that do not fit."""
        load_best(self.parts, model)
        return model

    def _load_checkpoint(self, url_or_filename: str | Path) -> None:
        """Go on from a checkpoint.

        Repairs: fails when weights are frozen, runs code that the file holds, forgets the best score.

        Raises:
            ConfigError: the file is no checkpoint, or one of another model.
        """
        self.parts.saving.resume(Path(url_or_filename), self.progress)
        self.progress.validation_due &= len(self.valid_splits) > 0
        self.start_epoch = self.position.epoch

    # ------------------------------------------------------------------ evaluating

    def eval_epoch(self, split_name: str, cur_epoch: int | str, skip_reload: bool = False) -> dict | None:
        """Evaluate on one split, and give the task's metrics, None where it has none on this rank.

        Repairs: moves batches to a GPU whether there is one or not, and evaluates in another precision than
        it trained in.

        Args:
            split_name: one of the data sets' splits.
            cur_epoch: names the result files; ``best`` also loads the best checkpoint.
            skip_reload: keep the weights as they are even for ``best``.
        """
        if cur_epoch == "best" and not skip_reload:
            self._reload_best_model(self.parts.bare_model)
        with self._watchdog:
            return evaluate_split(self.parts, self.task, split_name, cur_epoch, skip_reload, self._watchdog)

    def evaluate(self, cur_epoch: int | str = "best", skip_reload: bool = False) -> dict[str, dict | None]:
        """Evaluate on ``run.test_splits``, without training, and give the metrics by split; see :meth:`eval_epoch`.

        Raises:
            ConfigError: there is no split to evaluate on.
        """
        if not self.test_splits and not (self.evaluate_only and self.valid_splits):
            raise ConfigError("There is nothing to evaluate on: run.test_splits is empty; give some, such as [val]")
        self._check_splits(*self.test_splits)
        use_trained_weights(self.parts, skip_reload)
        self._describe_run(LATEST_EVALUATION)
        logging.info("Evaluating on %s, into %s.", " and ".join(self.test_splits), self.output_dir)
        return self._test(cur_epoch, skip_reload)

    def _evaluate_only(self) -> None:
        """Evaluate the given weights on all splits that are named."""
        # All at once: loaders, which know how much data there is, are made when the first are checked.
        self._check_splits(*self.valid_splits, *self.test_splits)
        use_trained_weights(self.parts, skip_reload=True)
        for split in self.valid_splits:
            stats = self.eval_epoch(split, "best", skip_reload=True)
            if stats is not None:
                self.log_stats(stats, split)
        self.evaluate(skip_reload=True)

    def _test(self, cur_epoch: int | str, skip_reload: bool) -> dict[str, dict | None]:
        logs = {}
        for split in self.test_splits:
            logs[split] = self.eval_epoch(split, cur_epoch, skip_reload)
            if logs[split] is not None:
                self._log_evaluation(split, logs[split])
        return logs

    def _validate_if_due(self) -> None:
        """Evaluate the last epoch on every validation split, keep the best weights, and note that it was done."""
        if not self.progress.validation_due:
            return
        epoch = self.position.last_epoch
        # LAVIS chooses the best epoch by "val", whatever other splits are named.
        deciding = "val" if "val" in self.valid_splits else self.valid_splits[0]
        with self.stop.at_once():
            for split in self.valid_splits:
                # Tasks may give their metrics to rank 0 alone, or others to each rank: rank 0's decide.
                stats = ranks.broadcast_object(self.eval_epoch(split, epoch))
                if stats is None:
                    continue
                if split == deciding:
                    note_score(self.progress, stats, epoch, self.task)
                self._log_evaluation(split, {**stats, "best_epoch": self.best_epoch})
        self.progress.validation_due = False
        self.parts.saving.save(self.progress)

    @main_process
    def _log_evaluation(self, split: str, stats: dict[str, Any]) -> None:
        self.log_stats(stats, split)
        records.note_evaluation(self.output_dir, split, self.position, stats)
        self.trackers.log(self.position.steps, split, stats)

"""Runner `git_llm`: LAVIS's runner made to work on CPU and GPU, in one process or several, and to resume."""

import contextlib
import datetime
import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
from lavis.common.dist_utils import main_process
from lavis.common.registry import registry
from lavis.datasets.data_utils import concat_datasets, reorg_datasets_by_split
from lavis.runners.runner_base import RunnerBase
from omegaconf import OmegaConf
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import IterableDataset

from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.modeling.checkpoint import read_checkpoint, write_checkpoint
from gitllm_plugin.runners import collectives, loaders, precision, settings
from gitllm_plugin.runners.checkpoints import (
    BEST,
    INTERRUPTED,
    LATEST,
    find_resume_point,
    load_trainable_state,
    trainable_state,
)
from gitllm_plugin.runners.commands import evaluation_command, resume_command
from gitllm_plugin.runners.interrupts import StopRequest
from gitllm_plugin.runners.loop import Position, StepRecord, TrainingLoop
from gitllm_plugin.runners.metrics_file import EVALUATIONS_FILE, METRICS_FILE, MetricsFile, take_out_lost_steps
from gitllm_plugin.runners.optimizer import build_optimizer
from gitllm_plugin.runners.progress import Progress
from gitllm_plugin.runners.run_folder import create_run_folder, point_to, write_versions
from gitllm_plugin.runners.schedule import DECAYS, HostSchedule, StepSchedule
from gitllm_plugin.runners.seeding import seed_everything

# What a finished run was tested on, in its folder.
TESTED = "tested.json"

# LAVIS and the check of configurations look schedules up in LAVIS's registry.
for _name in DECAYS:
    registry.register_lr_scheduler(_name)(StepSchedule)


@registry.register_runner("git_llm")
class GitLLMRunner(RunnerBase):
    """Trains and evaluates by epochs or iterations; runs LAVIS's tasks, data sets and configurations.

    What differs from LAVIS's `RunnerBase` is a method that says which of its defects it repairs.

    Attributes:
        position: Where training stands.
        best_agg_metric: Best validation score so far, None before the first.
        best_epoch: Its epoch.
    """

    CONFIG_KEYS = settings.CONFIG_KEYS

    def __init__(self, cfg: Any, task: Any, model: torch.nn.Module, datasets: dict, job_id: str):
        """Make the run's folder; everything else is built when it is first needed.

        Args:
            cfg: LAVIS's `Config`.
            task: LAVIS's task.
            model: On any device; moved to the run's.
            datasets: By data set name, then by split.
            job_id: Not used: the folder's name is its own, made by rank 0.

        Raises:
            ConfigError: The output folder or the checkpoint to resume from cannot be had.
        """
        settings.fill_defaults(cfg.run_cfg)
        self.position = Position()
        self.best_agg_metric: float | None = None
        self.best_epoch: int | None = None
        self._validation_due = False
        self._resume_from: Path | None = None
        self._dtype: torch.dtype | None = None
        super().__init__(cfg, task, model, datasets, job_id)

    # ------------------------------------------------------------------ device, precision, processes

    @property
    def device(self) -> torch.device:
        """Repairs: `device: auto` is not known, and `device: cuda` is the same GPU for every rank."""
        if self._device is None:
            local_rank = self.config.run_cfg.get("gpu") if self.use_distributed else None
            self._device = precision.resolve_device(self.config.run_cfg.device, local_rank)
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        """Repairs: the only reduced precision is fp16. Here bf16 or fp32; LAVIS's `amp: False` means fp32."""
        if self._dtype is None:
            name = self.config.run_cfg.precision
            if name == "auto" and self.config.run_cfg.get("amp") is False:
                name = "fp32"
            self._dtype = precision.resolve_precision(name, self.device)
            logging.info("Computing on %s in %s.", self.device, self._dtype)
        return self._dtype

    @property
    def scaler(self) -> None:
        """None: bf16 needs no gradient scaler."""
        return None

    @property
    def use_distributed(self) -> bool:
        """Repairs: `distributed: True` in a config is believed where no process group exists."""
        return collectives.is_distributed()

    @property
    def model(self) -> torch.nn.Module:
        """Repairs: is None where the model already is on the device, and gives DDP device ids on a CPU.

        Where the run computes in fp32 the model is fp32, frozen weights included, however they were loaded.
        A batch without images leaves the projection unused, hence `find_unused_parameters`.
        """
        if self._wrapped_model is None:
            self._model = self._model.to(self.device)
            if self.dtype == torch.float32:
                self._model = precision.compute_in_float32(self._model)
            self._wrapped_model = self._model
            if self.use_distributed and any(p.requires_grad for p in self._model.parameters()):
                device_ids = [self.device.index] if self.cuda_enabled else None
                self._wrapped_model = DistributedDataParallel(
                    self._model, device_ids=device_ids, find_unused_parameters=True
                )
        return self._wrapped_model

    def unwrap_dist_model(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model itself, whether it was wrapped or not."""
        return model.module if isinstance(model, DistributedDataParallel) else model

    # ------------------------------------------------------------------ what one step needs

    @property
    def optimizer(self) -> torch.optim.AdamW:
        """Repairs: rates cannot differ by parameter, and decay is decided by letters within names."""
        if self._optimizer is None:
            run_cfg = self.config.run_cfg
            model = self.unwrap_dist_model(self.model)
            beta2 = float(run_cfg.beta2)
            self._optimizer = build_optimizer(model, self.init_lr, float(run_cfg.weight_decay), beta2)
            count = sum(p.numel() for group in self._optimizer.param_groups for p in group["params"])
            logging.info("Trainable parameters: %s", f"{count:,}")
        return self._optimizer

    @property
    def lr_scheduler(self) -> StepSchedule | HostSchedule:
        """Repairs: the rate changes per epoch only. `cosine`, `linear` and `constant` change it per step.

        LAVIS's own schedulers keep working, under their registered names.
        """
        if self._lr_sched is None:
            run_cfg = self.config.run_cfg
            name = run_cfg.lr_sched
            if name in DECAYS:
                self._lr_sched = StepSchedule(
                    self.optimizer,
                    name,
                    total_steps=self._steps_until(self.total_iters),
                    warmup_steps=int(run_cfg.warmup_steps),
                    init_lr=self.init_lr,
                    min_lr=self.min_lr,
                    warmup_lr=float(run_cfg.get("warmup_lr", 0.0)),
                )
            elif registry.get_lr_scheduler_class(name) is not None:
                self._lr_sched = HostSchedule(self.optimizer, super().lr_scheduler)
            else:
                known = ", ".join(registry.list_lr_schedulers())
                raise ConfigError(f"run.lr_sched is {name!r}; it may be one of {known}")
        return self._lr_sched

    # ------------------------------------------------------------------ data

    @property
    def dataloaders(self) -> dict[str, Any]:
        """Loaders by split.

        Repairs: asks streaming data for a length that it does not have.
        """
        if self._dataloaders is None:
            self.datasets = concat_datasets(reorg_datasets_by_split(self.datasets))
            self._dataloaders = {split: self._create_loader(split) for split in sorted(self.datasets)}
        return self._dataloaders

    def _create_loader(self, split: str) -> Any:
        """Repairs: loaders need CUDA, never change the order in distributed runs, repeat evaluation examples.

        Streaming data sets, and mixtures with them, still get the host's loaders.
        """
        run_cfg, dataset = self.config.run_cfg, self.datasets[split]
        is_train = split in self.train_splits
        batch_size = int(run_cfg.batch_size_train if is_train else run_cfg.batch_size_eval)
        num_workers = int(run_cfg.num_workers)
        if isinstance(dataset, (tuple, IterableDataset)):
            parts = dataset if isinstance(dataset, tuple) else [dataset]
            collate = [getattr(part, "collater", None) for part in parts]
            ratios = run_cfg.get("train_dataset_ratios")
            return self.create_loaders([dataset], num_workers, [batch_size], [is_train], [collate], ratios)[0]
        logging.info("Split %s: %d items.", split, len(dataset))
        collate = getattr(dataset, "collater", None)
        if is_train:
            seed = int(run_cfg.seed)
            return loaders.train_loader(dataset, batch_size, num_workers, collate, seed, self.cuda_enabled)
        shared = bool(self.use_dist_eval_sampler)
        return loaders.evaluation_loader(dataset, batch_size, num_workers, collate, shared, self.cuda_enabled)

    def _check_splits(self, splits: list[str]) -> None:
        """Repairs: a split that does not exist, or is empty, is found only when its turn comes.

        Raises:
            ConfigError: A split that no data set has.
            DataError: A split without examples.
        """
        for split in splits:
            if split not in self.dataloaders:
                known = ", ".join(sorted(self.dataloaders))
                raise ConfigError(f"run names the split {split!r}, but the data sets have: {known or 'none'}")
            dataset = self.datasets[split]
            if not isinstance(dataset, IterableDataset) and len(dataset) == 0:
                storage = f"build_info.annotations.{split}.storage"
                raise DataError(f"Split {split!r} has no examples; check the data set's {storage}")

    def _epoch_batches(self):
        """Batches of the position's epoch, from the position's iteration on."""
        loader = self.train_loader
        if hasattr(loader, "__next__"):  # the host's loader of a streaming data set, which has no epochs
            return loader
        loader.sampler.set_position(self.position.epoch, self.position.epoch_iter * loader.batch_size)
        return iter(loader)

    # ------------------------------------------------------------------ how long a run is

    @property
    def iters_per_epoch(self) -> int:
        """Batches per epoch and rank; for streaming data `run.iters_per_inner_epoch` or `run.max_iters`."""
        if not hasattr(self.train_loader, "__next__"):
            return len(self.train_loader)
        given = self.config.run_cfg.get("iters_per_inner_epoch") or self.config.run_cfg.get("max_iters")
        if given is None:
            raise ConfigError("Streaming training data has no length: give run.iters_per_inner_epoch or run.max_iters")
        return int(given)

    @property
    def max_epoch(self) -> int:
        """`run.max_epoch`, or as many as `run.max_iters` needs."""
        if self.config.run_cfg.get("max_epoch") is not None:
            return int(self.config.run_cfg.max_epoch)
        return math.ceil(int(self.config.run_cfg.max_iters) / self.iters_per_epoch)

    @property
    def total_iters(self) -> int:
        """Iterations of the whole run: `run.max_epoch` epochs, and at most `run.max_iters`."""
        by_epochs = self.max_epoch * self.iters_per_epoch
        return min(by_epochs, int(self.config.run_cfg.get("max_iters") or by_epochs))

    def _steps_until(self, iters: int) -> int:
        """Optimizer steps of the first `iters` iterations of a run; an epoch's last may accumulate fewer batches."""
        epochs, rest = divmod(iters, self.iters_per_epoch)
        steps_per_epoch = math.ceil(self.iters_per_epoch / self.accum_grad_iters)
        return epochs * steps_per_epoch + math.ceil(rest / self.accum_grad_iters)

    def _is_finished(self) -> bool:
        return self.position.epoch >= self.max_epoch or self.position.iters >= self.total_iters

    # ------------------------------------------------------------------ output

    def setup_output_dir(self) -> None:
        """Repairs: runs land inside the installed package, in one folder when started in the same minutes.

        The folder is unique, below the working directory or wherever `run.output_dir` says, and the same on
        all ranks; a resumed run goes on in its own. LAVIS's registry refuses to set a path twice, so that a
        second run in one process fails; it is set directly.
        """
        output_dir = Path(self.config.run_cfg.output_dir).expanduser().absolute()
        folder = None
        if collectives.rank() == 0:
            resume = self.resume_ckpt_path if not self.evaluate_only else None
            self._resume_from = find_resume_point(str(resume), output_dir) if resume else None
            folder = self._resume_from.parent if self._resume_from else create_run_folder(output_dir)
            (folder / "result").mkdir(exist_ok=True)
        self._resume_from, self.output_dir = collectives.broadcast_object((self._resume_from, folder))
        self.result_dir = self.output_dir / "result"
        registry.mapping["paths"]["output_dir"] = str(self.output_dir)
        registry.mapping["paths"]["result_dir"] = str(self.result_dir)

    @main_process
    def _describe_run(self, link: str) -> None:
        """Write the resolved config and the versions, and let `link` beside the folder point to it."""
        self.log_config()
        OmegaConf.save(self.config.config, self.output_dir / "config.yaml", resolve=True)
        trained = sum(p.numel() for p in self._model.parameters() if p.requires_grad)
        write_versions(self.output_dir / "versions.json", trained_parameters=trained)
        point_to(self.output_dir, link)
        logging.info("Output: %s", self.output_dir)

    # ------------------------------------------------------------------ training

    def train(self) -> None:
        """Train to `run.max_epoch` or `run.max_iters`, evaluate after each epoch, then test the best weights.

        With `run.evaluate` nothing is trained: the given weights are evaluated on all splits named.

        Repairs: needs a process group, loses the best checkpoint when the score is negative, saves nothing to
        resume from when there is validation.

        Raises:
            ConfigError: The run cannot be trained as configured.
            KeyboardInterrupt: After saving and saying how to resume.
        """
        if self.evaluate_only:
            self._check_splits([*self.valid_splits])
            self._validate_only()
            self.evaluate(skip_reload=True)
            return
        began = time.monotonic()
        self._prepare_training()
        if self._is_finished() and not self._validation_due and self._is_tested():
            self._say_nothing_to_do()
            return
        try:
            self._train_epochs()
            self._test(cur_epoch="best" if self.valid_splits else self._epoch_label(), skip_reload=False)
            self._note_tested()
        except KeyboardInterrupt:
            self._say_how_to_resume()
            raise
        seconds = int(time.monotonic() - began)
        logging.info("Training time %s. Output: %s", datetime.timedelta(seconds=seconds), self.output_dir)

    def _prepare_training(self) -> None:
        """Check what can be checked before the first step, and take up a run to be resumed."""
        settings.check_training_settings(self.config.run_cfg)
        self._check_splits([*self.train_splits, *self.valid_splits, *self.test_splits])
        if not hasattr(self.train_loader, "__next__"):
            loaders.check_has_batches(self.train_loader, "train")
        if self._resume_from is not None:
            self._load_checkpoint(self._resume_from)
        elif self.resume_ckpt_path is not None:
            logging.info("run.resume_ckpt_path is auto and there is no run to resume: starting a new one.")
        self._describe_run("latest")

    def _train_epochs(self) -> None:
        if self._validation_due:
            self._validate(self._epoch_label())
        while not self._is_finished():
            stats = self.train_epoch(self.position.epoch)
            self.log_stats(stats, "train")
            self._validation_due = len(self.valid_splits) > 0
            self._save(LATEST)
            if self._validation_due:
                self._validate(self._epoch_label())
            collectives.barrier()

    def _epoch_label(self) -> int:
        """The epoch that was trained last, finished or not."""
        return self.position.epoch if self.position.epoch_iter else self.position.epoch - 1

    def train_epoch(self, epoch: int) -> dict[str, str]:
        """Train what is left of an epoch.

        Repairs: the task's own loop needs CUDA, knows no clipping, synchronises on every accumulated batch,
        drops the last of them, and averages means of unequal weight.

        Returns:
            Averages in LAVIS's form, as texts.

        Raises:
            KeyboardInterrupt: After Ctrl-C, with `checkpoint_interrupted.pth` written.
        """
        run_cfg = self.config.run_cfg
        seed_everything(int(run_cfg.seed), collectives.rank(), epoch, self.position.epoch_iter)
        self.model.train()
        loop = TrainingLoop(
            task=self.task,
            model=self.model,
            optimizer=self.optimizer,
            schedule=self.lr_scheduler,
            device=self.device,
            autocast=self._autocast,
            accum_grad_iters=self.accum_grad_iters,
            max_grad_norm=run_cfg.max_grad_norm,
        )
        iters_left = self.total_iters - self.position.iters
        last_iter = min(self.iters_per_epoch, self.position.epoch_iter + iters_left)
        records = self._run_loop(loop, last_iter)
        if self.position.epoch_iter == self.iters_per_epoch:
            self.position.epoch, self.position.epoch_iter = epoch + 1, 0
        if loop.stopped:
            self._validation_due = self.position.epoch_iter == 0 and len(self.valid_splits) > 0
            self._save(INTERRUPTED)
            raise KeyboardInterrupt
        return self._averages(records)

    def _run_loop(self, loop: TrainingLoop, last_iter: int) -> list[StepRecord]:
        """Run the loop, showing and writing every step."""
        start = self.position.epoch_iter
        is_main = collectives.rank() == 0
        metrics = MetricsFile(self.output_dir / METRICS_FILE) if is_main else None
        title = f"epoch {self.position.epoch + 1}/{self.max_epoch}"
        records = []
        with StopRequest() as stop, Progress(title, last_iter, start, self.log_freq) as progress:
            batches = self._epoch_batches()
            for record in loop.run(batches, self.position, last_iter, lambda: stop.requested):
                records.append(record)
                if metrics is not None:
                    metrics.write(record.as_dict())
                iterations = self.position.epoch_iter - progress.done
                progress.update(iterations, record.samples, loss=f"{record.loss:.4f}", lr=f"{record.lr:.2e}")
        if metrics is not None:
            metrics.close()
        return records

    def _autocast(self):
        return precision.autocast(self.device, self.dtype)

    @staticmethod
    def _averages(records: list[StepRecord]) -> dict[str, str]:
        tokens = max(1, sum(record.tokens for record in records))
        loss = sum(record.loss * record.tokens for record in records) / tokens
        lr = sum(record.lr for record in records) / max(1, len(records))
        return {"lr": f"{lr:.3g}", "loss": f"{loss:.3f}"}

    # ------------------------------------------------------------------ evaluation

    @torch.no_grad()
    def eval_epoch(self, split_name: str, cur_epoch: int | str, skip_reload: bool = False) -> dict | None:
        """Evaluate on one split.

        Repairs: moves batches to a GPU whether there is one or not, and evaluates in another precision than
        it trained in.

        Args:
            split_name: The split.
            cur_epoch: Names the result files; `best` also loads the best checkpoint.
            skip_reload: Keep the weights as they are even for `best`.

        Returns:
            The task's metrics; None where the task has none, or gives them to rank 0 only.
        """
        model = self.unwrap_dist_model(self.model)
        if cur_epoch == "best" and not skip_reload:
            self._reload_best_model(model)
        model.eval()
        logging.info("Evaluating on %s.", split_name)
        self.task.before_evaluation(model=model, dataset=self.datasets[split_name])
        loader = self.dataloaders[split_name]
        with self._autocast():
            results = self.task.evaluation(model, loader, cuda_enabled=self.cuda_enabled)
        if results is None:
            return None
        return self.task.after_evaluation(val_result=results, split_name=split_name, epoch=cur_epoch)

    def evaluate(self, cur_epoch: int | str = "best", skip_reload: bool = False) -> dict[str, dict | None]:
        """Evaluate on `run.test_splits`, without training.

        Returns:
            Metrics by split.

        Raises:
            ConfigError: No split to evaluate on.
        """
        if not self.test_splits and not (self.evaluate_only and self.valid_splits):
            raise ConfigError("There is nothing to evaluate on: run.test_splits is empty")
        self._check_splits([*self.test_splits])
        self._describe_run("latest_evaluation")
        return self._test(cur_epoch, skip_reload)

    def _test(self, cur_epoch: int | str, skip_reload: bool) -> dict[str, dict | None]:
        logs = {}
        for split in self.test_splits:
            logs[split] = self.eval_epoch(split, cur_epoch, skip_reload)
            if logs[split] is not None:
                self.log_stats(logs[split], split)
        return logs

    def _is_tested(self) -> bool:
        """Whether the end of this run, as far as it is trained now, was evaluated on all `run.test_splits`."""
        path = self.output_dir / TESTED
        tested = json.loads(path.read_text()) if collectives.rank() == 0 and path.is_file() else {}
        tested = collectives.broadcast_object(tested)
        done = tested.get("splits", []) if tested.get("iters") == self.position.iters else []
        return set(self.test_splits) <= set(done)

    @main_process
    def _note_tested(self) -> None:
        """Let a run that was interrupted in its test be told from one that is done."""
        content = {"iters": self.position.iters, "splits": list(self.test_splits)}
        (self.output_dir / TESTED).write_text(json.dumps(content) + "\n")

    def _validate_only(self) -> None:
        for split in self.valid_splits:
            stats = self.eval_epoch(split, "best", skip_reload=True)
            if stats is not None:
                self.log_stats(stats, split)

    def _validate(self, epoch: int) -> None:
        """Evaluate on every validation split, keep the best weights, and note that it was done."""
        deciding = "val" if "val" in self.valid_splits else self.valid_splits[0]
        for split in self.valid_splits:
            stats = self.eval_epoch(split, epoch)
            if stats is None:
                continue
            if split == deciding:
                self._keep_if_best(stats, epoch)
            self.log_stats({**stats, "best_epoch": self.best_epoch}, split)
            self._note_evaluation(split, stats)
        self._validation_due = False
        self._save(LATEST)

    @main_process
    def _note_evaluation(self, split: str, stats: dict[str, Any]) -> None:
        """Keep every evaluation of a training, for curves: LAVIS's log does not say at which step it was."""
        place = {"split": split, "step": self.position.steps, "iter": self.position.iters, "epoch": self._epoch_label()}
        with contextlib.closing(MetricsFile(self.output_dir / EVALUATIONS_FILE)) as evaluations:
            evaluations.write({**place, **stats})

    def _keep_if_best(self, stats: dict[str, Any], epoch: int) -> None:
        """Repairs: the best score starts at 0, so that a run with negative scores has no best checkpoint."""
        if "agg_metrics" not in stats:
            task = type(self.task).__name__
            raise ConfigError(f"Task {task} gives no 'agg_metrics' to choose the best epoch by")
        score = float(stats["agg_metrics"])
        if math.isnan(score):
            logging.warning("The validation score of epoch %d is not a number.", epoch)
        elif self.best_agg_metric is None or score > self.best_agg_metric:
            self.best_agg_metric, self.best_epoch = score, epoch
            self._save(BEST)

    # ------------------------------------------------------------------ checkpoints

    @main_process
    def _save(self, name: str) -> None:
        """Repairs: a crash destroys the file, tied frozen weights get in, score and position are lost."""
        path = self.output_dir / name
        content = {
            "model": trainable_state(self.unwrap_dist_model(self.model)),
            "optimizer": self.optimizer.state_dict(),
            "config": OmegaConf.to_container(self.config.config, resolve=True),
            "scaler": None,
            "epoch": self.position.epoch - 1,
            "epoch_iters": self.position.epoch_iter,
            "iters_per_epoch": self.iters_per_epoch,
            "iters": self.position.iters,
            "steps": self.position.steps,
            "validated": not self._validation_due,
            "best_agg_metric": self.best_agg_metric,
            "best_epoch": self.best_epoch,
        }
        write_checkpoint(path, content)
        if name == LATEST:
            (self.output_dir / INTERRUPTED).unlink(missing_ok=True)
        logging.info("Saved %s.", path)

    def _save_checkpoint(self, cur_epoch: int, is_best: bool = False) -> None:
        """The host's name for saving."""
        self._save(BEST if is_best else LATEST)

    def _reload_best_model(self, model: torch.nn.Module) -> torch.nn.Module:
        """Repairs: fails where there is no best checkpoint, and hides weights that do not fit."""
        path = self.output_dir / BEST
        if path.is_file():
            load_trainable_state(model, read_checkpoint(path)["model"], str(path))
            logging.info("Loaded %s.", path)
        else:
            logging.info("There is no %s in this run's folder: evaluating the weights as they are.", BEST)
        return model

    def _load_checkpoint(self, url_or_filename: str | Path) -> None:
        """Repairs: fails when weights are frozen, runs code that the file holds, forgets the best score.

        Raises:
            ConfigError: Not a checkpoint, or one of another model.
        """
        path = Path(url_or_filename)
        content = read_checkpoint(path)
        if "optimizer" not in content or "epoch" not in content:
            raise ConfigError(f"{path} holds weights but no training state; give it as model.finetuned")
        load_trainable_state(self.unwrap_dist_model(self.model), content["model"], str(path))
        try:
            self.optimizer.load_state_dict(content["optimizer"])
        except ValueError as error:
            raise ConfigError(f"The optimizer's state in {path} does not fit this run: {error}") from error
        if collectives.rank() == 0 and "steps" in content:
            take_out_lost_steps(self.output_dir / METRICS_FILE, int(content["epoch"]) + 1, int(content["steps"]))
        self._restore_position(content)
        self.best_agg_metric = content.get("best_agg_metric")
        self.best_epoch = content.get("best_epoch")
        self._validation_due = not content.get("validated", True) and len(self.valid_splits) > 0
        where = f"epoch {self.position.epoch}, iteration {self.position.epoch_iter}"
        logging.info("Resuming %s at %s.", path, where)

    def _restore_position(self, content: dict[str, Any]) -> None:
        """Continue where the checkpoint stands; files of the host's runner say only the epoch.

        Iterations and steps are counted as if epochs always had this run's length, so that schedule and end of
        the run fit its batch size and number of processes. Streams have no epochs: their iterations count on.
        """
        epoch, epoch_iter = int(content["epoch"]) + 1, int(content.get("epoch_iters", 0))
        before = int(content.get("iters_per_epoch", self.iters_per_epoch))
        if before != self.iters_per_epoch and hasattr(self.train_loader, "__next__"):
            epoch, epoch_iter = divmod(int(content["iters"]), self.iters_per_epoch)
        elif before != self.iters_per_epoch:
            logging.warning(
                "An epoch had %d iterations and now has %d (another batch size, number of processes or amount of "
                "data); training goes on with epoch %d%s.",
                before,
                self.iters_per_epoch,
                epoch + 1,
                ", which is started anew" if epoch_iter else "",
            )
            epoch_iter = 0
        iters = epoch * self.iters_per_epoch + epoch_iter
        self.position = Position(epoch=epoch, epoch_iter=epoch_iter, iters=iters, steps=self._steps_until(iters))
        self.start_epoch = epoch

    # ------------------------------------------------------------------ messages

    def _given_config(self) -> tuple[str, list[str]]:
        """The configuration file and the options this run was started with, as far as `Config` knows them."""
        args = getattr(self.config, "args", None)
        return str(getattr(args, "cfg_path", "CONFIG.yaml")), list(getattr(args, "options", None) or [])

    def _say_nothing_to_do(self) -> None:
        best = self.output_dir / BEST
        weights = best if best.is_file() or self._resume_from is None else self._resume_from
        logging.info(
            "Nothing to do: %d of %d epochs (%d iterations) are done in %s. Evaluate its weights with:\n  %s",
            min(self.position.epoch, self.max_epoch),
            self.max_epoch,
            self.position.iters,
            self.output_dir,
            evaluation_command(*self._given_config(), weights),
        )

    @main_process
    def _say_how_to_resume(self) -> None:
        """After Ctrl-C: what is kept, what is lost, and the command that goes on."""
        candidates = [self.output_dir / name for name in (INTERRUPTED, LATEST)]
        resume_point = next((path for path in candidates if path.is_file()), None)
        if resume_point is None:
            logging.warning("Interrupted before anything was saved; start the run again.")
            return
        command = resume_command(*self._given_config(), resume_point)
        if self._is_finished() and not self._validation_due and self.test_splits:
            logging.warning("Interrupted after training, in the test. Run the test with:\n  %s", command)
            return
        content = read_checkpoint(resume_point)
        logging.warning(
            "Interrupted. %s holds the weights after %d iterations (%d of epoch %d); what came after that is "
            "lost. Resume with:\n  %s",
            resume_point,
            content["iters"],
            content["epoch_iters"],
            content["epoch"] + 2,  # the file counts finished epochs from 0, the progress bar from 1
            command,
        )

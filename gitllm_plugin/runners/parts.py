"""What a run is made of; each part is built when it is first needed."""

import logging
from pathlib import Path
from typing import Any

import torch
from lavis.common.registry import registry
from lavis.datasets.data_utils import reorg_datasets_by_split
from lavis.runners.runner_base import RunnerBase
from omegaconf import OmegaConf
from torch.utils.data import IterableDataset

from gitllm_plugin.common import ranks
from gitllm_plugin.datasets.features import choose_features
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.runners import loaders, parallel, precision, settings
from gitllm_plugin.runners.best_scores import BestScores
from gitllm_plugin.runners.checkpoints import find_resume_point, run_folder_of
from gitllm_plugin.runners.length import Position, RunLength
from gitllm_plugin.runners.optimizer import build_optimizer
from gitllm_plugin.runners.run_folder import create_run_folder, point_to, storage_errors, write_versions
from gitllm_plugin.runners.schedule import DECAYS, HostSchedule, StepSchedule
from gitllm_plugin.runners.training_data import TrainingData, training_data
from gitllm_plugin.runners.training_state import TrainingProgress


class RunnerParts(RunnerBase):
    """Device, model, optimizer, schedule, data, length and folder of a run.

    Attributes:
        progress: How far training is.
    """

    def __init__(self, cfg: Any, task: Any, model: torch.nn.Module, datasets: dict, job_id: str):
        """Make the run's folder; everything else is built when it is first needed.

        Args:
            cfg: LAVIS's `Config`.
            task: LAVIS's task.
            model: On any device; moved to the run's.
            datasets: By data set name, then by split.
            job_id: Not used: the folder's name is its own, made by rank 0.

        Raises:
            ConfigError: The output folder or the checkpoint to resume from cannot be had, or the data brings features
                that another image encoder made.
        """
        choose_features(model, datasets)
        settings.fill_defaults(cfg.run_cfg)
        self.progress = TrainingProgress(BestScores(str(cfg.run_cfg.best), int(cfg.run_cfg.keep_best)))
        self._datasets_by_name = datasets
        self._resume_from: Path | None = None
        self._dtype: torch.dtype | None = None
        self._data: TrainingData | None = None
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
        """Repairs: the only reduced precision is fp16. LAVIS's `amp: False` means fp32."""
        if self._dtype is None:
            name = self.config.run_cfg.precision
            if name == "auto" and self.config.run_cfg.get("amp") is False:
                name = "fp32"
            self._dtype = precision.resolve_precision(name, self.device)
            logging.info("Computing on %s in %s.", self.device, self._dtype)
        return self._dtype

    @property
    def scaler(self) -> torch.amp.GradScaler:
        """Repairs: the scaler is for GPUs only. It is disabled where gradients are not in fp16."""
        if self._scaler is None:
            self._scaler = precision.gradient_scaler(self.device, self.dtype)
        return self._scaler

    @property
    def use_distributed(self) -> bool:
        """Repairs: `distributed: True` in a config is believed where no process group exists."""
        return ranks.is_distributed()

    @property
    def model(self) -> torch.nn.Module:
        """Repairs: is None where the model already is on the device, and gives DDP device ids on a CPU.

        Where the run computes in fp32 the model is fp32, frozen weights included, however they were loaded.
        """
        if self._wrapped_model is None:
            run_cfg = self.config.run_cfg
            if self.dtype == torch.float32:
                self._model = precision.compute_in_float32(self._model)
            if run_cfg.sharding == "none":  # else it may be too large for the device before it is spread
                self._model = self._model.to(self.device)
            if run_cfg.compile:
                parallel.compile_blocks(self._model)
            self._wrapped_model = parallel.share(self._model, self.device, run_cfg.sharding)
        return self._wrapped_model

    def unwrap_dist_model(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model itself, whether it was wrapped or not."""
        return parallel.unwrap(model)

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
                    total_steps=self.length.steps_until(self.length.total_iters),
                    warmup_steps=int(run_cfg.warmup_steps),
                    init_lr=self.init_lr,
                    min_lr=self.min_lr,
                    warmup_lr=float(run_cfg.get("warmup_lr") or 0.0),
                )
            elif registry.get_lr_scheduler_class(name) is not None:
                self._lr_sched = HostSchedule(self.optimizer, super().lr_scheduler)
            else:
                known = ", ".join(registry.list_lr_schedulers())
                raise ConfigError(f"run.lr_sched is {name!r}; it may be one of {known}")
        return self._lr_sched

    # ------------------------------------------------------------------ data and length

    @property
    def data(self) -> TrainingData:
        """Repairs: streams need a length, mixtures a runner of their own, and none can be resumed."""
        if self._data is None:
            run_cfg = self.config.run_cfg
            self._data = training_data(
                self._datasets_by_name,
                run_cfg.train_splits,
                run_cfg.get("train_dataset_ratios"),
                self._loader_settings(run_cfg.batch_size_train),
                int(run_cfg.seed),
            )
        return self._data

    @property
    def train_loader(self) -> TrainingData:
        """The host's name for it."""
        return self.data

    @property
    def dataloaders(self) -> dict[str, Any]:
        """Loaders by split, for evaluation.

        Repairs: loaders need CUDA, and repeat evaluation examples in distributed runs.
        """
        if self._dataloaders is None:
            by_split = reorg_datasets_by_split(self._datasets_by_name)
            for split in {*self.valid_splits, *self.test_splits}:
                if len(by_split.get(split, [])) > 1:
                    raise ConfigError(f"Several data sets have a split {split!r}: only one can be evaluated on")
            self.datasets = {split: found[0] for split, found in by_split.items()}
            self._dataloaders = {split: self._create_loader(split) for split in sorted(self.datasets)}
        return self._dataloaders

    def _create_loader(self, split: str) -> Any:
        """A loader for evaluation; sharded models need all ranks to compute as much, so each reads all of it."""
        run_cfg = self.config.run_cfg
        shared = bool(self.use_dist_eval_sampler) and run_cfg.sharding == "none"
        return loaders.evaluation_loader(self.datasets[split], self._loader_settings(run_cfg.batch_size_eval), shared)

    def _loader_settings(self, batch_size: Any) -> loaders.LoaderSettings:
        return loaders.LoaderSettings(int(batch_size), int(self.config.run_cfg.num_workers), self.cuda_enabled)

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

    @property
    def length(self) -> RunLength:
        """Repairs: `max_iters` needs another runner than `max_epoch`, which streaming data cannot have."""
        return RunLength.of(self.config.run_cfg, self.data.batches_per_epoch, self.data.streaming)

    @property
    def max_epoch(self) -> int:
        """`run.max_epoch`, or as many as `run.max_iters` needs."""
        return self.length.max_epoch

    # ------------------------------------------------------------------ how far it is

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

    # ------------------------------------------------------------------ output

    def setup_output_dir(self) -> None:
        """Repairs: runs land inside the installed package, in one folder when started in the same minutes.

        The folder is unique, below the working directory or wherever `run.output_dir` says, and the same on
        all ranks; a resumed run goes on in its own. LAVIS's registry refuses to set a path twice, so that a
        second run in one process fails; it is set directly.
        """
        self._resume_from, self.output_dir = ranks.from_first_rank(self._find_or_make_folder)
        self.result_dir = self.output_dir / "result"
        registry.mapping["paths"]["output_dir"] = str(self.output_dir)
        registry.mapping["paths"]["result_dir"] = str(self.result_dir)

    def _find_or_make_folder(self) -> tuple[Path | None, Path]:
        """The checkpoint to resume from, if any, and the run's folder."""
        output_dir = Path(self.config.run_cfg.output_dir).expanduser().absolute()
        resume = self.resume_ckpt_path if not self.evaluate_only else None
        resume_from = find_resume_point(str(resume), output_dir) if resume else None
        folder = run_folder_of(resume_from) if resume_from else create_run_folder(output_dir)
        (folder / "result").mkdir(exist_ok=True)
        return resume_from, folder

    def log_stats(self, stats: dict[str, Any], split_name: str) -> None:
        """Repairs: a full disk is a traceback."""
        with storage_errors():
            super().log_stats(stats, split_name)

    def _describe_run(self, link: str) -> None:
        """Write the resolved config and the versions, and let `link` beside the folder point to it."""
        ranks.from_first_rank(lambda: self._write_description(link))
        logging.info("Output: %s", self.output_dir)

    def _write_description(self, link: str) -> None:
        self.log_config()
        OmegaConf.save(self.config.config, self.output_dir / "config.yaml", resolve=True)
        trained = sum(p.numel() for p in self._model.parameters() if p.requires_grad)
        write_versions(self.output_dir / "versions.json", trained_parameters=trained)
        point_to(self.output_dir, link)

    def _plain_config(self) -> dict[str, Any]:
        return OmegaConf.to_container(self.config.config, resolve=True)  # type: ignore[return-value]

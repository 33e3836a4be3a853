"""What a run is made of: each part is built once, from those before it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lavis.datasets.data_utils import reorg_datasets_by_split
from torch import nn
from torch.utils.data import IterableDataset

from gitllm_plugin.common import ranks
from gitllm_plugin.common.loading import Loader
from gitllm_plugin.common.run_files import run_folder_of
from gitllm_plugin.config.run import endless_fault
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.protocols import (
    EndlessStream,
    ModelReadingData,
    ModelReadingTask,
    SizedImagesModel,
    TokenCountingModel,
    check_offers,
    offers,
)
from gitllm_plugin.runners import parallel, precision
from gitllm_plugin.runners.checkpoints import CheckpointFolder, SavingTimes, find_resume_point
from gitllm_plugin.runners.fitting import fit_texts
from gitllm_plugin.runners.length import RunLength
from gitllm_plugin.runners.loaders import LoaderSettings, evaluation_loader
from gitllm_plugin.runners.loop import TrainingLoop
from gitllm_plugin.runners.optimizer import Schedule, build_optimizer, build_schedule
from gitllm_plugin.runners.run_folder import create_run_folder
from gitllm_plugin.runners.run_lock import give_back, hold
from gitllm_plugin.runners.same_run import differences, fingerprints
from gitllm_plugin.runners.saved_config import without_secrets
from gitllm_plugin.runners.state import Saving, TrainingState
from gitllm_plugin.runners.token_batches import TokenBudget
from gitllm_plugin.runners.training_data import TrainingData, training_data


def introduce(model: nn.Module, task: Any, datasets: Mapping[str, Mapping[str, Any]]) -> None:
    """See what model, task and data offer, and let task and data look at the model.

    Args:
        model: before it is moved, wrapped or spread.
        task: LAVIS's.
        datasets: by data set name, then by split.

    Raises:
        ConfigError: one offers half of a protocol, or they do not fit each other.
    """
    check_offers(model, "model")
    check_offers(getattr(model, "text_encoder", None), "text encoder")
    check_offers(task, "task")
    if offers(task, ModelReadingTask):
        task.use_model(model)
    for dataset in [dataset for by_split in datasets.values() for dataset in by_split.values()]:
        check_offers(dataset, "data set", *(["stream"] if isinstance(dataset, IterableDataset) else []))
        # Before the model is moved, wrapped or spread: its fingerprint is made of whole weights.
        if offers(dataset, ModelReadingData):
            dataset.use_model(model)


class RunParts:
    """The parts of a run, in the order in which they depend on each other.

    Each is built when it is first asked for: an evaluation has no optimizer and no training data, and what is wrong
    with a part is said before the next one takes its time.

    Args:
        config: LAVIS's ``Config``; its ``run_cfg`` with all defaults filled in.
        model: on any device; moved to the run's.
        datasets: by data set name, then by split.

    Attributes:
        saving_times: when a checkpoint is due within an epoch.
        fitted: splits whose texts were compared with what the model can read.
        has_trained_weights: whether an evaluation has seen to it that the model is trained.
    """

    def __init__(self, config: Any, model: nn.Module, datasets: Mapping[str, Mapping[str, Any]]):
        self.config = config
        self.datasets = datasets
        self._model = model
        self.fitted: set[str] = set()
        self.has_trained_weights = False
        self.saving_times = SavingTimes(self.run_cfg.get("save_every_steps"), self.run_cfg.get("save_every_minutes"))

    @property
    def run_cfg(self) -> Any:
        """The configuration's ``run``."""
        return self.config.run_cfg

    @property
    def plain_config(self) -> dict[str, Any]:
        """The configuration as plain values, resolved but for secrets."""
        return without_secrets(self.config.config)

    # ------------------------------------------------------------------ the folder, which the ranks share

    @cached_property
    def _opened(self) -> tuple[Path | None, Path]:
        # Rank 0 alone looks and makes: the clocks of others would name another folder.
        return ranks.from_first_rank(self._open_folder)

    def _open_folder(self) -> tuple[Path | None, Path]:
        output_dir = Path(self.run_cfg.output_dir).expanduser().absolute()
        # An evaluation has a folder of its own: it must not write over what the training evaluated.
        resume = self.run_cfg.get("resume_ckpt_path") if not self.run_cfg.evaluate else None
        resume_from = find_resume_point(str(resume), output_dir, self._differences, hold) if resume else None
        folder = run_folder_of(resume_from) if resume_from else create_run_folder(output_dir)
        (folder / "result").mkdir(exist_ok=True)
        return resume_from, folder

    def hold_folder(self) -> None:
        """Let no other process train the run. One that is resumed is held since its folder was found."""
        hold(self.folder)

    def close(self) -> None:
        """End what works beside the run, and let other processes resume it."""
        if "data" in vars(self):  # else it would be built only to be closed
            self.data.close()
        if ranks.rank() == 0:
            give_back(self.folder)

    @cached_property
    def _trained_on(self) -> dict[str, str]:
        return fingerprints(self.datasets, self.run_cfg.train_splits)

    def _differences(self, content: Mapping[str, Any]) -> list[str]:
        return differences(content, self.plain_config, self._trained_on)

    @property
    def resume_from(self) -> Path | None:
        """The checkpoint that the run goes on from, if any."""
        return self._opened[0]

    @property
    def folder(self) -> Path:
        """The run's own: a new one, or that of the run which goes on."""
        return self._opened[1]

    @cached_property
    def checkpoints(self) -> CheckpointFolder:
        """The run's checkpoints on disk."""
        return CheckpointFolder(self.folder, int(self.run_cfg.keep_last))

    # ------------------------------------------------------------------ where and how it computes

    @cached_property
    def device(self) -> torch.device:
        """This rank's device."""
        local_rank = self.run_cfg.get("gpu") if ranks.is_distributed() else None
        return precision.resolve_device(self.run_cfg.device, local_rank)

    @cached_property
    def dtype(self) -> torch.dtype:
        """What matrices are multiplied in. LAVIS's ``amp: False`` means fp32."""
        name = self.run_cfg.precision
        # LAVIS's own configurations say `amp: False` where they want float32.
        if name == "auto" and self.run_cfg.get("amp") is False:
            name = "fp32"
        return precision.resolve_precision(name, self.device)

    def autocast(self) -> AbstractContextManager:
        """Give the context of forward passes, in training and evaluation alike."""
        return precision.autocast(self.device, self.dtype)

    @cached_property
    def scaler(self) -> torch.amp.GradScaler:
        """Of gradients; disabled where they are not in fp16."""
        return precision.gradient_scaler(self.device, self.dtype)

    @cached_property
    def model(self) -> nn.Module:
        """The model on its device, as the ranks share it.

        Where the run computes in fp32 the model is fp32, frozen weights included, however they were loaded.
        """
        model, sharding = self._model, self.run_cfg.sharding
        if self.run_cfg.get("tokens_per_batch") is not None:
            _ = self.data.batches_per_epoch  # an image's tokens are counted by the whole model, before it is spread
        if self.dtype == torch.float32:
            model = precision.compute_in_float32(model)
        if sharding == "none":  # else it may be too large for the device before it is spread
            model = model.to(self.device)
        if self.run_cfg.compile:
            parallel.compile_blocks(model)
        return parallel.share(model, self.device, sharding)

    @property
    def bare_model(self) -> nn.Module:
        """The model on its device, not wrapped."""
        return parallel.unwrap(self.model)

    # ------------------------------------------------------------------ what is trained on, and for how long

    def _loader_settings(self, batch_size: Any) -> LoaderSettings:
        return LoaderSettings(int(batch_size), int(self.run_cfg.num_workers), self.device.type == "cuda")

    @cached_property
    def data(self) -> TrainingData:
        """The training batches."""
        run_cfg = self.run_cfg
        ratios, settings = run_cfg.get("train_dataset_ratios"), self._loader_settings(run_cfg.batch_size_train)
        return training_data(self.datasets, run_cfg.train_splits, ratios, settings, int(run_cfg.seed), self._budget)

    @property
    def _budget(self) -> TokenBudget | None:
        tokens = self.run_cfg.get("tokens_per_batch")
        if tokens is None:
            return None
        if not offers(self._model, TokenCountingModel):
            raise ConfigError(
                f"run.tokens_per_batch: {type(self._model).__name__} does not count tokens (TokenCountingModel of "
                "gitllm_plugin.protocols); use run.batch_size_train"
            )
        return TokenBudget(int(tokens), self._model.count_tokens)

    @cached_property
    def length(self) -> RunLength:
        """How long training is."""
        return RunLength.of(self.run_cfg, self.data.batches_per_epoch, self.data.streaming)

    @cached_property
    def optimizer(self) -> torch.optim.AdamW:
        """Over the trained parameters."""
        run_cfg = self.run_cfg
        return build_optimizer(
            self.bare_model, float(run_cfg.init_lr), float(run_cfg.weight_decay), float(run_cfg.beta2)
        )

    @cached_property
    def schedule(self) -> Schedule:
        """Of the learning rates."""
        return build_schedule(self.run_cfg, self.optimizer, self.length)

    @cached_property
    def state(self) -> TrainingState:
        """What a checkpoint holds besides the progress."""
        return TrainingState(
            model=self.bare_model,
            optimizer=self.optimizer,
            scaler=self.scaler,
            schedule=self.schedule,
            length=self.length,
            data=self.data,
            config=self.plain_config,
            trained_on=self._trained_on if ranks.rank() == 0 else {},  # only its content is written
        )

    @cached_property
    def saving(self) -> Saving:
        """What writes and reads the run's checkpoints."""
        return Saving(self.state, self.checkpoints, self.saving_times)

    def build_loop(self, task: Any, at: Callable[[str], None]) -> TrainingLoop:
        """Make the training loop, one for all epochs.

        Args:
            task: LAVIS's task.
            at: is told what this rank does.
        """
        run_cfg = self.run_cfg
        return TrainingLoop(
            task=task,
            model=self.model,
            optimizer=self.optimizer,
            schedule=self.schedule,
            scaler=self.scaler,
            device=self.device,
            autocast=self.autocast,
            seed=int(run_cfg.seed),
            accum_grad_iters=int(run_cfg.accum_grad_iters),
            max_grad_norm=float(run_cfg.max_grad_norm),
            max_skipped_steps=int(run_cfg.max_skipped_steps),
            # Reading costs nothing on a CPU.
            read_every=1 if self.device.type == "cpu" else int(run_cfg.log_freq),
            at=at,
        )

    # ------------------------------------------------------------------ what is evaluated on

    @property
    def valid_splits(self) -> Sequence[str]:
        """What is evaluated after an epoch."""
        return self.run_cfg.valid_splits

    @cached_property
    def splits(self) -> dict[str, Any]:
        """The data set of each split, the first where several have it.

        Raises:
            ConfigError: several data sets have a split that is evaluated on.
        """
        by_split = reorg_datasets_by_split(self.datasets)
        for split in {*self.run_cfg.valid_splits, *self.run_cfg.test_splits}:
            if len(by_split.get(split, [])) > 1:
                raise ConfigError(f"Several data sets have a split {split!r}: only one can be evaluated on")
        return {split: found[0] for split, found in by_split.items()}

    @cached_property
    def loaders(self) -> dict[str, Loader]:
        """A loader for evaluation of each split."""
        # Ranks that spread a model between them gather it together, so that each has to compute as often as the others.
        shared = bool(self.run_cfg.get("use_dist_eval_sampler", True)) and self.run_cfg.sharding == "none"
        settings = self._loader_settings(self.run_cfg.batch_size_eval)
        return {split: evaluation_loader(self.splits[split], settings, shared) for split in sorted(self.splits)}

    def check_image_sizes(self, splits: Sequence[str]) -> None:
        """Refuse image processors whose images the model would refuse: those of evaluation would show after an epoch.

        Raises:
            ConfigError: naming the data set and both sizes.
        """
        if not offers(self._model, SizedImagesModel):
            return
        for name, by_split in self.datasets.items():
            for split in set(splits) & set(by_split):
                transform = getattr(getattr(by_split[split], "vis_processor", None), "transform", None)
                # A processor of another package says its size nowhere.
                if isinstance(size := getattr(transform, "image_size", None), int):
                    try:
                        self._model.check_image_size(size, size)
                    except ConfigError as error:
                        raise ConfigError(f"datasets.{name}, split {split!r}: {error}") from error

    def check_splits(self, names: Sequence[str], task: Any) -> None:
        """Refuse splits that cannot be read, before anything is computed.

        Raises:
            ConfigError: a split that no data set has, one to be evaluated on that has no end, or one whose images have
                a size that the model does not take.
            DataError: a split without examples, or with texts that the model cannot read and that are not skipped.
        """
        self.check_image_sizes(names)
        for key in ("valid_splits", "test_splits"):
            for split in self.run_cfg[key]:
                dataset = self.splits.get(split)
                if offers(dataset, EndlessStream) and dataset.endless:
                    raise ConfigError(endless_fault(f"run.{key}", split))
        new = [name for name in names if name not in self.fitted]
        self.fitted.update(new)
        # First: what is left out counts for all that asks how much data there is.
        fit_texts(self._model, task, self.datasets, self.run_cfg, new)
        for split in names:
            if split not in self.loaders:
                known = ", ".join(sorted(self.loaders))
                raise ConfigError(f"run names the split {split!r}, but the data sets have: {known or 'none'}")
            dataset = self.splits[split]
            if not isinstance(dataset, IterableDataset) and len(dataset) == 0:
                storage = f"build_info.annotations.{split}.storage"
                raise DataError(f"Split {split!r} has no examples; check the data set's {storage}")

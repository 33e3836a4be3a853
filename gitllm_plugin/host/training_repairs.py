"""Repairs of training by LAVIS's own runners: which weights are kept, and with which rates they are trained.

As in :mod:`gitllm_plugin.host.repairs`, each function can go when LAVIS is fixed. A runner with a ``train`` of its own
does these things itself, and is left alone.
"""

import contextlib
import functools
import json
import logging
import math
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gitllm_plugin.common.files import atomic_path
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.host.patching import Repairs

_RUNNER = "lavis.runners.runner_base:RunnerBase"
_BESTS = ("best_epoch", "best_iters")
_SCORE = "best_agg_metrics"
_REPAIRS = Repairs()
_repair = _REPAIRS.of


def repair_training() -> None:
    """Apply all repairs of this file; LAVIS must have been imported. Calling it again does nothing."""
    for repair in _REPAIRS:
        repair()


def _is_trained_by_lavis(runner: Any) -> bool:
    return not runner.evaluate_only and type(runner).train.__module__.startswith("lavis.")


def _place(cur_epoch: Any) -> int | None:
    """Give the epoch, or of ``0_iters=40`` the iterations, as LAVIS counts them in checkpoints; None for "best"."""
    number = str(cur_epoch).rpartition("=")[2]
    return int(number) if number.isdigit() else None


@_repair(f"{_RUNNER}.eval_epoch")
def keep_the_best_of_any_sign(original: Any) -> Any:
    """The best score begins at 0: of losses, which are below, and of a score of 0 no checkpoint was kept.

    After the training the runner looked for ``checkpoint_best.pth``.
    """

    @functools.wraps(original)
    def eval_epoch(self, split_name, cur_epoch, skip_reload=False):
        log = original(self, split_name, cur_epoch, skip_reload)
        place = _place(cur_epoch)
        if place is None or split_name not in self.valid_splits or not _is_trained_by_lavis(self):
            return log
        self.gitllm_last = place
        if not isinstance(log, dict):
            return log
        score = _number(log.get("agg_metrics"))
        if split_name == "val" and score > getattr(self, "gitllm_best", (-math.inf, 0))[0]:
            self.gitllm_best = (score, place)
            if score <= 0:  # else LAVIS does it
                self._save_checkpoint(place, is_best=True)
        return {**log, "agg_metrics": score}  # LAVIS ends where there is none

    return eval_epoch


def _number(score: Any) -> float:
    """Give a score as a number: that of a task that gives none is not one."""
    try:
        return float(score)
    except (TypeError, ValueError):
        return math.nan


@_repair(f"{_RUNNER}._save_checkpoint", "lavis.runners.runner_iter:RunnerIter._save_checkpoint")
def save_as_the_best_what_is(original: Any) -> Any:
    """A resumed training began again with a best score of 0, and wrote over what had been better."""

    @functools.wraps(original)
    def save_checkpoint(self, place, is_best=False, **more):
        if is_best and getattr(self, "gitllm_best", (0, place))[1] != place:
            return None
        return original(self, place, is_best=is_best, **more)

    return save_checkpoint


@_repair(f"{_RUNNER}.log_stats")
def name_the_best_of_any_sign(original: Any) -> Any:
    """``best_epoch`` in the log is 0 for as long as no score is above 0; and how good the best is, is not said."""

    @functools.wraps(original)
    def log_stats(self, stats, split_name):
        if isinstance(stats, dict) and hasattr(self, "gitllm_last") and not set(_BESTS).isdisjoint(stats):
            score, place = getattr(self, "gitllm_best", (None, None))
            stats = {key: place if key in _BESTS else value for key, value in stats.items()} | {_SCORE: score}
            if math.isnan(_number(stats["agg_metrics"])):
                stats["agg_metrics"] = None  # JSON has no word for no number
        return original(self, stats, split_name)

    return log_stats


@_repair(f"{_RUNNER}.evaluate")
def keep_the_last_where_none_is_best(original: Any) -> Any:
    """Where no split is called ``val``, or no score is a number, no checkpoint was kept at all."""

    @functools.wraps(original)
    def evaluate(self, cur_epoch="best", skip_reload=False):
        last = getattr(self, "gitllm_last", None)
        if last is not None and _is_trained_by_lavis(self) and not _has_best(self):
            logging.warning(
                "No validation of a split named val gave a score that can be compared: "
                "the weights of the end are kept as checkpoint_%d.pth and evaluated.",
                last,
            )
            self._save_checkpoint(last, is_best=False)
            cur_epoch = last
        return original(self, cur_epoch=cur_epoch, skip_reload=skip_reload)

    return evaluate


def _has_best(runner: Any) -> bool:
    """Ask the first rank, which alone has scores and writes."""
    import torch.distributed

    found = [hasattr(runner, "gitllm_best") or (Path(runner.output_dir) / "checkpoint_best.pth").is_file()]
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(found, src=0)
    return found[0]


@contextlib.contextmanager
def _taking_what_was_saved(model: Any) -> Iterator[None]:
    """While entered, ``load_state_dict`` lets weights be missing that are not trained: LAVIS does not save them."""

    def load_state_dict(state: Any, strict: bool = True) -> Any:
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        missing = set(model.state_dict()) - set(state)
        return type(model).load_state_dict(model, state, strict=strict and not missing <= frozen)

    model.load_state_dict = load_state_dict
    try:
        yield
    finally:
        del model.load_state_dict


@_repair(f"{_RUNNER}._load_checkpoint")
def resume_with_what_was_saved(of_all_weights: Any) -> Any:
    """Weights that are not trained are not saved, and were missed when a training was resumed."""

    @functools.wraps(of_all_weights)
    def load_checkpoint(self, url_or_filename):
        with _taking_what_was_saved(self.unwrap_dist_model(self.model)):
            of_all_weights(self, url_or_filename)
        if self.start_epoch >= self.max_epoch:
            raise ConfigError(
                f"run.resume_ckpt_path={url_or_filename} is of epoch {self.start_epoch}, counted from 1, and "
                f"run.max_epoch is {self.max_epoch}: nothing is left to train. Give more epochs, or evaluate"
            )
        _remember_the_best(self, Path(url_or_filename).parent, self.start_epoch - 1)

    return load_checkpoint


@_repair("lavis.runners.runner_iter:RunnerIter._load_checkpoint")
def resume_iterations_with_what_was_saved(of_all_weights: Any) -> Any:
    """The same for ``runner_iter``; the release's saves all weights, git main's does not."""

    @functools.wraps(of_all_weights)
    def load_checkpoint(self, url_or_filename):
        with _taking_what_was_saved(self.unwrap_dist_model(self.model)):
            of_all_weights(self, url_or_filename)
        if self.start_iters >= self.max_iters:
            raise ConfigError(
                f"run.resume_ckpt_path={url_or_filename} is of iteration {self.start_iters}, and run.max_iters is "
                f"{self.max_iters}: nothing is left to train. Give more iterations, or evaluate"
            )
        _remember_the_best(self, Path(url_or_filename).parent, self.start_iters)

    return load_checkpoint


def _remember_the_best(runner: Any, folder: Path, done: int) -> None:
    """Take the best checkpoint of the training that is resumed, and how good it is, into the one that goes on.

    Args:
        runner: of LAVIS's.
        folder: of the checkpoint from which it goes on; its log says how good the best is.
        done: the epoch, or iterations, of that checkpoint: what was best later is not of this training.
    """
    from lavis.common.dist_utils import is_main_process

    best = folder / "checkpoint_best.pth"
    if not runner.valid_splits or not is_main_process() or not best.is_file():
        return
    import torch

    kept = torch.load(best, map_location="cpu", weights_only=True, mmap=True)
    place = kept["iters"] if "iters" in kept else kept["epoch"]
    if place > done:
        return
    score = _score_of(folder / "log.txt", place)
    if math.isnan(score):
        logging.warning("%s does not say how good %s is: what is best counts from here on.", folder / "log.txt", best)
        return
    runner.gitllm_best = (score, place)
    if folder.resolve() != Path(runner.output_dir).resolve():
        with atomic_path(Path(runner.output_dir) / best.name) as partial:
            shutil.copyfile(best, partial)


def _score_of(log: Path, place: int) -> float:
    """Read from LAVIS's log how good the best checkpoint is, if it is of this epoch or iteration."""
    if not log.is_file():
        return math.nan
    for line in reversed(log.read_text(encoding="utf-8").splitlines()):
        if line.startswith('{"val_'):
            stats = json.loads(line)
            if place in [stats.get(f"val_{key}") for key in _BESTS]:
                return _number(stats.get(f"val_{_SCORE}"))
    return math.nan


@_repair(f"{_RUNNER}._reload_best_model")
def test_with_what_was_saved(of_all_weights: Any) -> Any:
    """The same before the test, with a warning that it is expected."""

    @functools.wraps(of_all_weights)
    def reload_best_model(self, model):
        with _taking_what_was_saved(model):
            return of_all_weights(self, model)

    return reload_best_model


@_repair(f"{_RUNNER}.optimizer")
def train_groups_as_the_model_says(of_all_alike: Any) -> Any:
    """A model's own groups, with ``lr_scale`` and ``weight_decay`` for each of its parts, were not asked for."""
    from gitllm_plugin.protocols import GroupedModel, offers
    from gitllm_plugin.runners.optimizer import build_optimizer

    def optimizer(self):
        if self._optimizer is None and offers(self.unwrap_dist_model(self.model), GroupedModel):
            run = self.config.run_cfg
            rates = float(run.init_lr), float(run.weight_decay), float(run.get("beta2", 0.999))
            self._optimizer = build_optimizer(self.unwrap_dist_model(self.model), *rates)
        return of_all_alike.fget(self)

    return property(optimizer)


@_repair(f"{_RUNNER}.lr_scheduler")
def scale_rates_by_group(of_all_alike: Any) -> Any:
    """LAVIS's schedules give all groups of parameters one rate."""

    class Scaled:
        """A schedule that gives each group its ``lr_scale`` of the rate."""

        def __init__(self, schedule: Any, groups: list[dict[str, Any]]) -> None:
            self.schedule, self.groups = schedule, groups

        def step(self, *args: Any, **kwargs: Any) -> None:
            self.schedule.step(*args, **kwargs)
            for group in self.groups:
                group["lr"] *= group.get("lr_scale", 1.0)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.schedule, name)

    def lr_scheduler(self):
        schedule = of_all_alike.fget(self)
        groups = self.optimizer.param_groups
        if not isinstance(schedule, Scaled) and any(group.get("lr_scale", 1.0) != 1.0 for group in groups):
            self._lr_sched = schedule = Scaled(schedule, groups)
        return schedule

    return property(lr_scheduler)


# ------------------------------------------------------------------------------------- warnings that nobody can act on


@_repair("lavis.runners.runner_base:DataLoader")
def pin_memory_with_a_gpu_only(original: Any) -> Any:
    """Memory is pinned for a GPU that is not there: torch warns for every loader."""
    import torch

    @functools.wraps(original, updated=())
    def loader(*args, **kwargs):
        if not torch.cuda.is_available():
            kwargs["pin_memory"] = False
        return original(*args, **kwargs)

    return loader


def silence_old_names() -> None:
    """Leave out what torch says of the names that LAVIS calls it by, as ``torch.cuda.amp``: once for every batch."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"lavis\.")


_REPAIRS.append(silence_old_names)

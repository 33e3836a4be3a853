"""Repairs of training by LAVIS's own runners: which weights are kept, and with which rates they are trained.

As in :mod:`gitllm_plugin.host.repairs`, each function can go when LAVIS is fixed. A runner with a ``train`` of its own
does these things itself, and is left alone.
"""

import contextlib
import functools
import logging
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.host.patching import Repairs

_RUNNER = "lavis.runners.runner_base:RunnerBase"
_BESTS = ("best_epoch", "best_iters")
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
        score = log.get("agg_metrics") if split_name == "val" and isinstance(log, dict) else None
        if score is not None and score > getattr(self, "gitllm_best", (-math.inf, 0))[0]:
            self.gitllm_best = (score, place)
            if score <= 0:  # else LAVIS does it
                self._save_checkpoint(place, is_best=True)
        return log

    return eval_epoch


@_repair(f"{_RUNNER}.log_stats")
def name_the_best_of_any_sign(original: Any) -> Any:
    """``best_epoch`` in the log is 0 for as long as no score is above 0."""

    @functools.wraps(original)
    def log_stats(self, stats, split_name):
        if isinstance(stats, dict) and hasattr(self, "gitllm_best"):
            stats = {key: self.gitllm_best[1] if key in _BESTS else value for key, value in stats.items()}
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

    return load_checkpoint


@_repair("lavis.runners.runner_iter:RunnerIter._load_checkpoint")
def resume_iterations_with_what_was_saved(of_all_weights: Any) -> Any:
    """The same in git main's ``runner_iter``; the release's saves all weights."""

    @functools.wraps(of_all_weights)
    def load_checkpoint(self, url_or_filename):
        with _taking_what_was_saved(self.unwrap_dist_model(self.model)):
            of_all_weights(self, url_or_filename)

    return load_checkpoint


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

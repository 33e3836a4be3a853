"""What a checkpoint holds, in LAVIS's form, and which one is meant.

A file is a dict of tensors, numbers, strings, lists and dicts, so that `torch.load(weights_only=True)` reads
it and nothing in it can run. LAVIS's keys:

    model             trained weights by name
    optimizer         the optimizer's state
    config            the resolved configuration
    scaler            the gradient scaler's state, None without one
    epoch             last epoch whose training was finished, -1 before the first

and those of this runner:

    epoch_iters       iterations done of the epoch after that one, 0 at an epoch's end
    iters_per_epoch   how many iterations an epoch had
    iters             iterations done since the start of the run
    steps             optimizer steps done since the start of the run
    totals            sums over this epoch's steps, for LAVIS's log
    validated         whether `epoch` was also evaluated
    best              the best validation scores, best first, each with its epoch and steps
    best_agg_metric   the first of them, or None
    best_epoch        its epoch, or None
    schedule          what the learning rate is computed from, None for LAVIS's own schedules
    random            by rank, the states of the random generators
    data              by rank, the position of streaming data, None where it has none
"""

import logging
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from gitllm_plugin.common.weights import check_same_weights, is_readable, without_known
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.runners.sharding import spread_like

BEST = "checkpoint_best.pth"
LATEST = "checkpoint_latest.pth"
STEPS = "checkpoints"
"""Folder of the files by step, of which `BEST` and `LATEST` are two."""


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """The weights of `model` that training changes.

    A model with `trainable_state_dict()` answers itself. For others it is the state dict without the frozen
    parameters, under whatever names they have: a head tied to a frozen embedding is frozen too.
    """
    if hasattr(model, "trainable_state_dict"):
        return cast(Any, model).trainable_state_dict()
    named = model.named_parameters(remove_duplicate=False)
    frozen = {name for name, parameter in named if not parameter.requires_grad}
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def load_trainable_state(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Put the weights of a checkpoint into `model`, after checking that they are this model's, all of them.

    A model with `load_trainable_state_dict(state, source)` checks and loads itself.

    Args:
        model: Changed in place.
        state: Weights by name.
        source: Where they come from, for the message.

    Raises:
        ConfigError: Names or shapes differ; the message lists them.
    """
    wanted = trainable_state(model)
    state = spread_like(wanted, without_known(model, wanted.keys(), state))
    if hasattr(model, "load_trainable_state_dict"):
        cast(Any, model).load_trainable_state_dict(state, source)
    else:
        check_same_weights(wanted, state, source)
        model.load_state_dict(state, strict=False)


def run_folder_of(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint belongs to."""
    return checkpoint.parent.parent if checkpoint.parent.name == STEPS else checkpoint.parent


def find_resume_point(value: str, output_dir: Path) -> Path | None:
    """The file meant by `run.resume_ckpt_path`.

    Args:
        value: A file, a run's folder (its newest checkpoint), or `auto` (the newest in `output_dir`). Of several,
            one that cannot be read is passed over, with a warning.
        output_dir: `run.output_dir`.

    Returns:
        The file, or None when `auto` finds none.

    Raises:
        ConfigError: A path without a checkpoint.
    """
    path = Path(value).expanduser()
    if value != "auto" and not path.is_dir():
        if not path.is_file():
            raise ConfigError(
                f"run.resume_ckpt_path is {value}, which does not exist; "
                "give a checkpoint, a run's folder, 'auto', or leave it out"
            )
        return path.resolve()
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
    """Checkpoints of a run, of LAVIS's own runners too."""
    return [*folder.glob("checkpoint_*.pth"), *folder.glob(f"{STEPS}/step_*.pth")]


def _age(file: Path) -> tuple[int, bool]:
    """Older is less; one file may have two names."""
    return file.stat().st_mtime_ns, file.name == LATEST

"""Checkpoint files in LAVIS's form that hold trainable weights only: writing, reading, comparing, finding.

A file is a dict of tensors, numbers, strings, lists and dicts, so that `torch.load(weights_only=True)` reads
it and nothing in it can run:

    model             trainable weights by name
    optimizer         the optimizer's state
    config            the resolved configuration
    scaler            None (LAVIS's key)
    epoch             last epoch whose training was finished, -1 before the first
    epoch_iters       iterations done of the epoch after that one, 0 at an epoch's end
    iters_per_epoch   how many iterations an epoch had
    iters             iterations done since the start of the run
    steps             optimizer steps done since the start of the run
    validated         whether `epoch` was also evaluated
    best_agg_metric   best validation score so far, or None
    best_epoch        its epoch, or None
"""

from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling.checkpoint import check_same_weights

BEST = "checkpoint_best.pth"
LATEST = "checkpoint_latest.pth"
INTERRUPTED = "checkpoint_interrupted.pth"


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
    if hasattr(model, "load_trainable_state_dict"):
        cast(Any, model).load_trainable_state_dict(state, source)
    else:
        check_same_weights(trainable_state(model), state, source)
        model.load_state_dict(state, strict=False)


def find_resume_point(value: str, output_dir: Path) -> Path | None:
    """The file meant by `run.resume_ckpt_path`.

    Args:
        value: A file, a run's folder (its newest resume point), or `auto` (the newest in `output_dir`).
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
    candidates = [folder / name for folder in folders for name in (LATEST, INTERRUPTED)]
    found = [file for file in candidates if file.is_file()]
    if not found and value != "auto":
        raise ConfigError(f"run.resume_ckpt_path is the folder {value}, which has neither {LATEST} nor {INTERRUPTED}")
    return max(found, key=lambda file: file.stat().st_mtime_ns).resolve() if found else None

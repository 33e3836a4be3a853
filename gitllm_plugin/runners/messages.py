"""What a run says when there is nothing to do, or when it was stopped."""

import logging
from pathlib import Path
from typing import Any

from gitllm_plugin.runners.checkpoint_folder import CheckpointFolder
from gitllm_plugin.runners.commands import evaluation_command, resume_command
from gitllm_plugin.runners.length import Position, RunLength


def given_config(config: Any) -> tuple[str, list[str]]:
    """The configuration file and the options that a run was started with, as far as LAVIS's `Config` knows them."""
    args = getattr(config, "args", None)
    return str(getattr(args, "cfg_path", "CONFIG.yaml")), list(getattr(args, "options", None) or [])


def say_nothing_to_do(
    config: Any, checkpoints: CheckpointFolder, position: Position, length: RunLength, resumed_from: Path | None
) -> None:
    """The run is trained and tested: how to evaluate what it gave."""
    weights = checkpoints.best if checkpoints.best.is_file() or resumed_from is None else resumed_from
    logging.info(
        "Nothing to do: %d of %d epochs (%d iterations) are done in %s. Evaluate its weights with:\n  %s",
        min(position.epoch, length.max_epoch),
        length.max_epoch,
        position.iters,
        checkpoints.run_folder,
        evaluation_command(*given_config(config), weights),
    )


def say_how_to_resume(what: str, config: Any, checkpoints: CheckpointFolder, saved: Position | None, rest: str) -> None:
    """A run was stopped: what is kept, what is lost, and the command that goes on.

    Args:
        what: What stopped it, the beginning of a sentence.
        config: LAVIS's `Config`.
        checkpoints: The run's.
        saved: Where the newest checkpoint stands, None where there is none.
        rest: What is still to be done when training is over, such as `the test`; empty before.
    """
    if saved is None:
        logging.warning("%s before anything was saved; start the run again.", what)
        return
    command = resume_command(*given_config(config), checkpoints.latest)
    if rest:
        logging.warning("%s after training, in %s. Run it with:\n  %s", what, rest, command)
        return
    logging.warning(
        "%s. %s holds the run after %d iterations (%d of epoch %d). Resume with:\n  %s",
        what,
        checkpoints.latest,
        saved.iters,
        saved.epoch_iter,
        saved.epoch + 1,
        command,
    )

"""What a run says when there is nothing to do, or when it was stopped, and the commands that it prints with it."""

import datetime
import logging
import os
import shlex
import sys
import time
from pathlib import Path

from gitllm_plugin.common import ranks
from gitllm_plugin.common.progress import peak_memory
from gitllm_plugin.common.weights import read_checkpoint
from gitllm_plugin.config.options import as_assignments
from gitllm_plugin.runners.length import Position
from gitllm_plugin.runners.run import RunParts
from gitllm_plugin.runners.state import TrainingProgress
from gitllm_plugin.runners.trained_weights import given_config


def say_nothing_to_do(parts: RunParts, position: Position) -> None:
    """Say that the run is trained and tested, and how to evaluate what it gave."""
    checkpoints, resumed_from = parts.checkpoints, parts.resume_from
    weights = checkpoints.best if checkpoints.best.is_file() or resumed_from is None else resumed_from
    logging.info(
        "Nothing to do: %d of %d epochs (%d iterations) are done in %s. Evaluate its weights with:\n  %s",
        min(position.epoch, parts.length.max_epoch),
        parts.length.max_epoch,
        position.iters,
        checkpoints.run_folder,
        evaluation_command(*given_config(parts.config), weights),
    )


def say_how_to_resume(what: str, parts: RunParts, progress: TrainingProgress) -> None:
    """Say of a run that was stopped, on rank 0, what is kept, what is lost, and the command that goes on.

    Args:
        what: what stopped it, the beginning of a sentence.
        parts: the run's.
        progress: how far it was.
    """
    if ranks.rank() != 0:
        return
    latest = parts.checkpoints.latest
    if not latest.is_file():
        logging.warning("%s before anything was saved; start the run again.", what)
        return
    command = resume_command(*given_config(parts.config), latest)
    saved = parts.length.continue_from(read_checkpoint(latest, mmap=True), parts.data.streaming)
    if parts.length.is_finished(saved) and not progress.validation_due and parts.run_cfg.test_splits:
        logging.warning("%s after training, in the test. Run it with:\n  %s", what, command)
        return
    logging.warning(
        "%s. %s holds the run after %d iterations (%d of epoch %d). Resume with:\n  %s",
        what,
        latest,
        saved.iters,
        saved.epoch_iter,
        saved.epoch + 1,
        command,
    )


def launch_command() -> list[str]:
    """Find how this process was started, up to its configuration: ``gitllm train`` or a script, or torchrun of them.

    A program that is not given ``--cfg-path``, such as a notebook, gets ``gitllm train``.
    """
    program = _program(sys.orig_argv)  # not sys.argv, which says nothing of `-m` and of the interpreter
    if not program:
        return ["gitllm", "train"]
    # torchrun starts each rank with a command of its own: repeating that would start a single one.
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return [*_torchrun(), *program]
    if program[0] == "-m" or program[0].endswith(".py"):
        return [sys.orig_argv[0], *program]
    return [Path(program[0]).name, *program[1:]]


def _program(words: list[str]) -> list[str]:
    """Find what a command line runs, without Python before it and the configuration behind it."""
    start = next((i for i in range(1, len(words)) if _is_program(words[i])), len(words))
    told = next((i for i, word in enumerate(words) if word.partition("=")[0] in ("--cfg-path", "--options")), 0)
    program = words[start:]
    own = 2 if program[:2] == ["-m", "gitllm_plugin"] else 1 if program and Path(program[0]).stem == "gitllm" else 0
    if not own:
        return words[start:told]
    # Behind it comes the command; `run` has a script behind it.
    return program[: own + (2 if program[own : own + 1] == ["run"] else 1)]


def _is_program(word: str) -> bool:
    """Tell whether a word of Python's command line begins what is run: a module, a script, the installed ``gitllm``."""
    return word == "-m" or word.endswith(".py") or Path(word).stem == "gitllm"


def _torchrun() -> list[str]:
    local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    nodes = [f"--nnodes={world // local}"] if world > local else []
    return ["torchrun", *nodes, f"--nproc_per_node={local}"]


def _command(start: list[str], cfg_path: str, options: list[str], last: list[str]) -> str:
    """Join ``start`` and the configuration; what ``last`` sets is taken out of ``options``."""
    replaced = {option.partition("=")[0] for option in last} | {"run.resume_ckpt_path"}
    kept = [option for option in as_assignments(options) if option.partition("=")[0] not in replaced]
    return shlex.join([*start, "--cfg-path", cfg_path, "--options", *kept, *last])


def resume_command(cfg_path: str, options: list[str], checkpoint: Path) -> str:
    """Give the command that continues an interrupted run, started as this one was.

    Args:
        cfg_path: configuration file of the run.
        options: its ``--options``, as ``key=value`` or as alternating keys and values.
        checkpoint: where to continue from.
    """
    return _command(launch_command(), cfg_path, options, [f"run.resume_ckpt_path={checkpoint}"])


def evaluation_command(cfg_path: str, options: list[str], checkpoint: Path) -> str:
    """Give the command that evaluates a run's weights; arguments as for :func:`resume_command`."""
    weights = ["model.load_finetuned=True", f"model.finetuned={checkpoint}"]
    return _command(["gitllm", "evaluate"], cfg_path, options, weights)


def say_done(parts: RunParts, began: float) -> None:
    """Say that the run is trained and tested, what that took, and how the model is asked.

    Args:
        parts: the run's.
        began: when its training did, by :func:`time.monotonic`.
    """
    spent, memory = took(time.monotonic() - began), peak_memory() / 1e9
    logging.info("Done in %s, with %.1f GB of memory at most. All is in %s", spent, memory, parts.folder)
    if parts.config.config.model.get("arch") == "git_llm":
        logging.info("Ask the model:\n  gitllm ask PICTURE 'QUESTION' --model %s", shlex.quote(str(parts.folder)))


def took(seconds: float) -> str:
    """Write a time as hours, minutes and seconds."""
    return str(datetime.timedelta(seconds=int(seconds)))

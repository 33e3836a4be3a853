"""Commands that a run tells its user, to be pasted into the shell it was started from."""

import os
import shlex
import sys
from pathlib import Path

from gitllm_plugin.config.options import as_assignments


def launch_command() -> list[str]:
    """How this process was started, up to its configuration: `gitllm train`, or a script, either under torchrun.

    A program that is not given `--cfg-path`, such as a notebook, gets `gitllm train`.
    """
    words = sys.orig_argv
    end = next((i for i, word in enumerate(words) if word.partition("=")[0] in ("--cfg-path", "--options")), 0)
    # Before the program come Python and its own arguments.
    start = next((i for i in range(1, end) if _is_program(words[i])), None)
    if start is None:
        return ["gitllm", "train"]
    program = words[start:end]
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return [*_torchrun(), *program]
    if program[0] == "-m" or program[0].endswith(".py"):
        return [words[0], *program]
    return [Path(program[0]).name, *program[1:]]


def _is_program(word: str) -> bool:
    """Whether a word of Python's command line begins what is run: a module, a script or the installed `gitllm`."""
    return word == "-m" or word.endswith(".py") or Path(word).stem == "gitllm"


def _torchrun() -> list[str]:
    local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    nodes = [f"--nnodes={world // local}"] if world > local else []
    return ["torchrun", *nodes, f"--nproc_per_node={local}"]


def _command(start: list[str], cfg_path: str, options: list[str], last: list[str]) -> str:
    """`start` with the configuration; what `last` sets is taken out of `options`."""
    replaced = {option.partition("=")[0] for option in last} | {"run.resume_ckpt_path"}
    kept = [option for option in as_assignments(options) if option.partition("=")[0] not in replaced]
    return shlex.join([*start, "--cfg-path", cfg_path, "--options", *kept, *last])


def resume_command(cfg_path: str, options: list[str], checkpoint: Path) -> str:
    """The command that continues an interrupted run, started as this one was.

    Args:
        cfg_path: Configuration file of the run.
        options: Its `--options`, as `key=value` or as alternating keys and values.
        checkpoint: Where to continue from.
    """
    return _command(launch_command(), cfg_path, options, [f"run.resume_ckpt_path={checkpoint}"])


def evaluation_command(cfg_path: str, options: list[str], checkpoint: Path) -> str:
    """The command that evaluates a run's weights; arguments as for `resume_command`."""
    weights = ["model.load_finetuned=True", f"model.finetuned={checkpoint}"]
    return _command(["gitllm", "evaluate"], cfg_path, options, weights)

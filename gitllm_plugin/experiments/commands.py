"""The trainings and evaluations that are commands of their own: how one is written, and why it ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gitllm_plugin.common.processes import advise_less_memory, describe_end, show_command, was_killed
from gitllm_plugin.experiments.plan import Plan, PlannedRun
from gitllm_plugin.resources import find_config

_BATCH_SIZES = {"train": ("batch_size_train", "batch_size_eval"), "evaluate": ("batch_size_eval",)}
"""By command, what of ``run`` its memory depends on most; a training evaluates too, between its epochs."""


def train_command(plan: Plan, run: PlannedRun, resume: bool = False) -> list[str]:
    """Give the training of a run, as ``python -m`` takes it.

    Args:
        plan: says where the run's folder lies.
        run: the run.
        resume: go on from the newest checkpoint below that folder.
    """
    output = f"run.output_dir={plan.output_dir / run.folder_name}"
    options = [*run.options, output, *(["run.resume_ckpt_path=auto"] if resume else [])]
    command = ["gitllm_plugin", "train", "--cfg-path", run.cfg_path, "--options", *options]
    if run.processes == 1:
        return command
    return ["torch.distributed.run", "--standalone", f"--nproc_per_node={run.processes}", "-m", *command]


def explain_end(arguments: Sequence[str], status: int) -> str:
    """Say how a command ended that failed, and what to do where it was killed.

    Args:
        arguments: the command, as ``python -m`` takes it.
        status: its exit status, see :func:`~gitllm_plugin.common.processes.describe_end`.
    """
    ended = f"`{show_command(arguments)}` {describe_end(status)}"
    if not was_killed(status):
        return f"{ended}; the reason stands above this line"
    own = arguments[arguments.index("gitllm_plugin") :] if "gitllm_plugin" in arguments else []
    keys = _BATCH_SIZES.get(own[1], ()) if own else ()
    if not keys:
        return f"{ended}. More memory is needed, or other programs must use less of it"
    cfg_path = arguments[arguments.index("--cfg-path") + 1]
    return f"{ended}. {advise_less_memory(_run_section(arguments, cfg_path), keys)} (configuration: {cfg_path})"


def _run_section(arguments: Sequence[str], cfg_path: str) -> Mapping[str, Any]:
    """Give the section ``run`` that the command reads; empty where it cannot be read, which is not the failure here."""
    from omegaconf import OmegaConf

    from gitllm_plugin.host.config_file import load_config

    options = arguments[arguments.index("--options") + 1 :] if "--options" in arguments else ()
    try:
        merged = OmegaConf.merge(load_config(find_config(cfg_path)), OmegaConf.from_dotlist(list(options)))
        return OmegaConf.to_container(merged.run)  # type: ignore[return-value]
    except Exception:  # noqa: BLE001 - advice without numbers is better than a second error
        return {}

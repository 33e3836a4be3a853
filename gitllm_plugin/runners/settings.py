"""The `run:` node of a configuration: its keys, their defaults and what they may be."""

from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gitllm_plugin.config_keys import wrong_type
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.runners.parallel import SHARDINGS
from gitllm_plugin.runners.precision import PRECISIONS
from gitllm_plugin.runners.records import TRACKERS, missing_packages
from gitllm_plugin.runners.state import ORDERS


@dataclass(frozen=True)
class Setting:
    """What a key of `run:` may be.

    Attributes:
        kind: Its type; numbers may also be written as text (`1e-3` is text in YAML).
        default: What a missing key means; None where it has no meaning without being given.
        least: The smallest number allowed.
        choices: The values allowed, also of a list's items; empty for any.
    """

    kind: type
    default: Any = None
    least: float | None = None
    choices: tuple[str, ...] = ()


SETTINGS: dict[str, Setting] = {
    "device": Setting(str, "auto"),
    "precision": Setting(str, "auto", choices=PRECISIONS),
    "amp": Setting(bool),
    "sharding": Setting(str, "none", choices=SHARDINGS),
    "compile": Setting(bool, False),
    "seed": Setting(int, 42, least=0),
    "output_dir": Setting(str, "output/git_llm"),
    "evaluate": Setting(bool, False),
    "resume_ckpt_path": Setting(str),
    "train_splits": Setting(list, ["train"]),
    "valid_splits": Setting(list, []),
    "test_splits": Setting(list, []),
    "init_lr": Setting(float, least=0),
    "lr_sched": Setting(str, "cosine"),
    "min_lr": Setting(float, 0.0, least=0),
    "warmup_lr": Setting(float),
    "warmup_steps": Setting(int, 0, least=0),
    "lr_decay_rate": Setting(float),
    "weight_decay": Setting(float, 0.05, least=0),
    "beta2": Setting(float, 0.999, least=0),
    "max_epoch": Setting(int, least=1),
    "max_iters": Setting(int, least=1),
    "iters_per_inner_epoch": Setting(int, least=1),
    "train_dataset_ratios": Setting(dict),
    "batch_size_train": Setting(int, 8, least=1),
    "batch_size_eval": Setting(int, least=1),
    "accum_grad_iters": Setting(int, 1, least=1),
    "max_grad_norm": Setting(float, 1.0, least=0),
    "max_skipped_steps": Setting(int, 5, least=0),
    "num_workers": Setting(int, 0, least=0),
    "use_dist_eval_sampler": Setting(bool, True),
    "log_freq": Setting(int, 50, least=1),
    "keep_last": Setting(int, 2, least=1),
    "keep_best": Setting(int, 1, least=1),
    "save_every_steps": Setting(int, least=1),
    "save_every_minutes": Setting(float, 30.0, least=0),
    "best": Setting(str, "max", choices=ORDERS),
    "step_timeout_minutes": Setting(float, 30.0, least=0),
    "trackers": Setting(list, [], choices=TRACKERS),
}
"""Every key of `run:` that the runner reads; the task and the launcher (`RUN_KEYS`) read others."""

CONFIG_KEYS = frozenset(SETTINGS)


def fill_defaults(run_cfg: MutableMapping[str, Any]) -> None:
    """Write the default of every missing key into `run_cfg`, so that the saved config says what was run.

    `batch_size_eval` is `batch_size_train` where it is missing.
    """
    for key, setting in SETTINGS.items():
        if key not in run_cfg and (setting.default is not None or key == "resume_ckpt_path"):
            run_cfg[key] = setting.default
    if "batch_size_eval" not in run_cfg:
        run_cfg["batch_size_eval"] = run_cfg["batch_size_train"]


def check_training_settings(run_cfg: Mapping[str, Any]) -> None:
    """Refuse a `run:` node that cannot be trained with.

    Raises:
        ConfigError: Listing every missing key and every value that is not allowed.
    """
    faults = [*setting_faults(run_cfg), *training_faults(run_cfg)]
    if faults:
        raise ConfigError("The run cannot be trained:\n  " + "\n  ".join(faults))


def setting_faults(run_cfg: Mapping[str, Any]) -> Iterable[str]:
    """What is wrong with the values that are given: types, ranges, names, and what excludes each other."""
    for key, setting in SETTINGS.items():
        value = run_cfg.get(key)
        if value is None:
            continue
        fault = wrong_type(value, setting.kind)
        if fault:
            yield f"run.{key} is {value!r}, expected {fault}"
        elif setting.least is not None and float(value) < setting.least:
            yield f"run.{key} is {value}; it must be {setting.least:g} or more"
        elif setting.choices:
            wrong = [v for v in (value if setting.kind is list else [value]) if v not in setting.choices]
            for name in wrong:
                yield f"run.{key} is {name!r}; it may be one of {', '.join(setting.choices)}"
    yield from _excluded(run_cfg)


def training_faults(run_cfg: Mapping[str, Any]) -> Iterable[str]:
    """What a training lacks."""
    if run_cfg.get("init_lr") is None:
        yield "run.init_lr is missing"
    if run_cfg.get("max_epoch") is None and run_cfg.get("max_iters") is None:
        yield "neither run.max_epoch nor run.max_iters is given; give at least one"


def _excluded(run_cfg: Mapping[str, Any]) -> Iterable[str]:
    precision, device = run_cfg.get("precision"), str(run_cfg.get("device"))
    if precision == "fp16" and run_cfg.get("sharding") == "fsdp":
        yield "run.precision=fp16 needs a gradient scaler, which knows no run.sharding=fsdp; use bf16 or fp32"
    if precision in ("fp16", "bf16") and run_cfg.get("amp") is False:
        yield f"run.amp=False means fp32, and run.precision is {precision}; leave run.amp out"
    if device.partition(":")[0] not in ("auto", "cpu", "cuda", "None"):
        yield f"run.device is {device!r}; it may be one of auto, cpu, cuda"


def missing_on_this_machine(run_cfg: Mapping[str, Any]) -> Iterable[str]:
    """A GPU, a checkpoint or a package that is asked for and not here."""
    if str(run_cfg.get("device")).startswith("cuda") and not torch.cuda.is_available():
        yield "run.device is 'cuda' but torch finds no GPU; use run.device=cpu or auto"
    resume = run_cfg.get("resume_ckpt_path")
    if isinstance(resume, str) and resume != "auto" and not Path(resume).expanduser().exists():
        yield f"run.resume_ckpt_path is {resume}, which does not exist; give a checkpoint, a run's folder or 'auto'"
    trackers = run_cfg.get("trackers")
    yield from missing_packages(trackers if isinstance(trackers, list) else [])

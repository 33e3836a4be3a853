"""The `run:` node of a configuration: its keys, their defaults and what they may be."""

from collections.abc import Mapping, MutableMapping
from typing import Any

from gitllm_plugin.errors import ConfigError

DEFAULTS: dict[str, Any] = {
    "device": "auto",
    "precision": "auto",
    "seed": 42,
    "output_dir": "output/git_llm",
    "evaluate": False,
    "resume_ckpt_path": None,
    "train_splits": ["train"],
    "valid_splits": [],
    "test_splits": [],
    "lr_sched": "cosine",
    "min_lr": 0.0,
    "warmup_steps": 0,
    "weight_decay": 0.05,
    "beta2": 0.999,
    "batch_size_train": 8,
    "accum_grad_iters": 1,
    "max_grad_norm": 1.0,
    "log_freq": 50,
    "num_workers": 0,
    "use_dist_eval_sampler": True,
}
"""What a missing key means. `batch_size_eval` is `batch_size_train` where it is missing."""

_WITHOUT_DEFAULT = {
    "init_lr",
    "warmup_lr",
    "lr_decay_rate",
    "batch_size_eval",
    "max_epoch",
    "max_iters",
    "iters_per_inner_epoch",
    "train_dataset_ratios",
    "amp",
}

CONFIG_KEYS = frozenset(DEFAULTS) | _WITHOUT_DEFAULT
"""Every key of `run:` that the runner reads; the task and the launcher (`RUN_KEYS`) read others."""


def fill_defaults(run_cfg: MutableMapping[str, Any]) -> None:
    """Write the default of every missing key into `run_cfg`, so that the saved config says what was run."""
    for key, value in DEFAULTS.items():
        if key not in run_cfg:
            run_cfg[key] = value
    if "batch_size_eval" not in run_cfg:
        run_cfg["batch_size_eval"] = run_cfg["batch_size_train"]


def check_training_settings(run_cfg: Mapping[str, Any]) -> None:
    """Refuse a `run:` node that cannot be trained with.

    Raises:
        ConfigError: Listing every missing key and every number out of range.
    """
    faults = ["run.init_lr is missing"] if run_cfg.get("init_lr") is None else []
    if run_cfg.get("max_epoch") is None and run_cfg.get("max_iters") is None:
        faults.append("neither run.max_epoch nor run.max_iters is given; give at least one")
    smallest = {"batch_size_train": 1, "accum_grad_iters": 1, "log_freq": 1, "max_epoch": 1, "max_iters": 1}
    smallest |= {"num_workers": 0, "warmup_steps": 0, "max_grad_norm": 0, "init_lr": 0, "min_lr": 0}
    for key, bound in smallest.items():
        value = run_cfg.get(key)
        if value is not None and float(value) < bound:
            faults.append(f"run.{key} is {value}; it must be {bound} or more")
    if faults:
        raise ConfigError("The run cannot be trained:\n  " + "\n  ".join(faults))

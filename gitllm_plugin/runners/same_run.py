"""Whether a run that is there is the one that a configuration describes, by what decides what a training computes.

A run may go on with another length or size of batches, on another machine or number of processes, with other
evaluations and from files that were moved. With other data, another model, seed or rate it would be another run in the
folder of the first.
"""

from collections.abc import Mapping, Sequence, Sized
from pathlib import PurePath
from typing import Any

from gitllm_plugin.config.node import describe
from gitllm_plugin.config.run import RunSettings
from gitllm_plugin.protocols import FingerprintedData, offers

_RUN = (
    "task",
    "seed",
    "train_splits",
    "train_dataset_ratios",
    "init_lr",
    "min_lr",
    "warmup_lr",
    "warmup_steps",
    "lr_sched",
    "lr_decay_rate",
    "weight_decay",
    "beta2",
    "max_grad_norm",
    "precision",
    "amp",
)
"""Keys of ``run`` that decide. The size of a batch may change, as when memory or the number of processes does."""

_MODEL_MAY_CHANGE = {"self_test", "gradient_checkpointing", "fused_kernels", "prompt", "rank_by", "class_names"}
_DATA_MAY_CHANGE = {
    "eval",  # processors
    "eval_texts_per_image",
    "data_type",
    "on_error",
    "cache_dir",
    # Where files are: what is in them is told by the data itself.
    "root",
    "shards",
    "features",
    "index_folder",
    "url",
    "images",
    "allow_missing",
    "splits",
    # And what is evaluated on.
    "val",
    "test",
}
_EVALUATED = ("val_", "test_")
_DEFAULTS = {f"run.{key.name}": key.default for key in describe(RunSettings)}


def fingerprints(datasets: Mapping[str, Mapping[str, Any]], splits: Sequence[str]) -> dict[str, str]:
    """Sum up what is trained on, by data set and split.

    Args:
        datasets: by name, then by split; those that offer no fingerprint have the number of their items.
        splits: that are trained on.
    """
    found = {}
    for name, by_split in datasets.items():
        for split in splits:
            dataset = by_split.get(split)
            if offers(dataset, FingerprintedData):
                found[f"{name}.{split}"] = dataset.fingerprint()
            elif isinstance(dataset, Sized):
                found[f"{name}.{split}"] = f"{len(dataset)} items"
    return found


def differences(before: Mapping[str, Any], config: Mapping[str, Any], trained_on: Mapping[str, str]) -> list[str]:
    """Say what of a checkpoint's run is otherwise than in this one; nothing where it is the same run.

    Args:
        before: the checkpoint's content. What it does not hold, as those of LAVIS's own runners, is not compared.
        config: this run's, resolved, as plain values.
        trained_on: what :func:`fingerprints` gave.
    """
    old, new = before.get("config"), _decisive(config)
    found = []
    if isinstance(old, Mapping) and old:
        old = _decisive(old)
        # Version 0.1.0 noted no fingerprints: the names of files have to do.
        known = isinstance(before.get("trained_on"), Mapping)
        keys = [key for key in {**old, **new} if not (known and _is_file(key))]
        found += [
            f"{key} was {_shown(old.get(key))} and is {_shown(new.get(key))}"
            for key in keys
            if not _is_same(old.get(key, _DEFAULTS.get(key)), new.get(key, _DEFAULTS.get(key)))
        ]
    for name, was in (before.get("trained_on") or {}).items():
        if name in trained_on and trained_on[name] != was:
            found.append(f"the data {name} was {was} and is {trained_on[name]}")
    return found


def _decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten what decides, by dotted keys."""
    run = config.get("run") or {}
    found = {f"run.{key}": run[key] for key in _RUN if key in run}
    found |= _flat("model", config.get("model") or {}, _MODEL_MAY_CHANGE)
    return found | _flat("datasets", config.get("datasets") or {}, _DATA_MAY_CHANGE)


def _flat(place: str, node: Mapping[str, Any], left_out: set[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in node.items():
        if key in left_out or str(key).startswith(_EVALUATED):
            continue
        if key == "storage":
            found[f"{place}.{key}"] = _names(value)
        elif isinstance(value, Mapping):
            found |= _flat(f"{place}.{key}", value, left_out)
        else:
            found[f"{place}.{key}"] = value
    return found


def _is_file(key: str) -> bool:
    return key.endswith(".storage")


def _names(storage: Any) -> Any:
    """Name files without their folders."""
    if isinstance(storage, Mapping):
        return {str(key): _names(value) for key, value in storage.items()}
    if isinstance(storage, Sequence) and not isinstance(storage, str):
        return [_names(value) for value in storage]
    return PurePath(str(storage)).name


def _is_same(old: Any, new: Any) -> bool:
    # Null, an empty list and "no" are what a missing key means, where a node has no declaration here.
    if old == new or (not old and not new):
        return True
    if isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)):
        return len(old) == len(new) and all(map(_is_same, old, new))
    try:
        return float(str(old)) == float(str(new))  # "1e-3" is a number too
    except ValueError:
        return False


def _shown(value: Any) -> str:
    return f"{value!r:.60}"

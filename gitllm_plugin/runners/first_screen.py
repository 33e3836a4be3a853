"""What a training says before its first step: what is trained, on what, how long, and where to."""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import IterableDataset

from gitllm_plugin.common import ranks
from gitllm_plugin.common.run_files import CONFIG, LATEST
from gitllm_plugin.protocols import CountedData, offers
from gitllm_plugin.runners.run import RunParts

_WIDTH = 79


def first_screen(parts: RunParts, task: Any) -> str:
    """Describe a training that is about to begin, in lines for a terminal."""
    run_cfg, model_cfg = parts.run_cfg, parts.config.config.model
    kind = " ".join(str(model_cfg[key]) for key in ("arch", "model_type") if model_cfg.get(key))
    title = f"Training {kind} by {type(task).__name__} on {', '.join(parts.datasets)}"
    return "\n".join([title, *(line for name, text in _facts(parts, run_cfg, model_cfg) for line in _row(name, text))])


def _facts(parts: RunParts, run_cfg: Any, model_cfg: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key in ("folder", "language_model", "image_encoder", "finetuned"):
        if model_cfg.get(key):
            yield key.replace("_", " "), str(model_cfg[key])
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in parts.bare_model.parameters()]
    trained, whole = sum(n for n, learns in sizes if learns), sum(n for n, _ in sizes)
    named = f" ({model_cfg.get('trainable')})" if model_cfg.get("trainable") else ""
    yield "trained", f"{trained:,} of {whole:,} parameters{named}"
    for name, by_split in parts.datasets.items():
        splits = [split for split in by_split if split in _splits(run_cfg)]
        yield name, ", ".join(f"{split}: {_size(by_split[split])}" for split in splits)
    length, processes = parts.length, ranks.world_size()
    batches = f"{run_cfg.tokens_per_batch} tokens" if run_cfg.get("tokens_per_batch") else run_cfg.batch_size_train
    together = "" if processes == 1 else f" on each of {processes} processes"
    epochs = "1 epoch" if length.num_epochs == 1 else f"{length.num_epochs} epochs"
    share = "" if length.total_iters >= length.iters_per_epoch else f" of {length.iters_per_epoch:,} batches, cut short"
    steps = length.steps_until(length.total_iters)
    yield "length", f"{epochs}{share}: {length.total_iters:,} batches of {batches}{together}, {steps:,} steps"
    yield "rate", f"{run_cfg.init_lr:g}, {run_cfg.lr_sched}"
    yield "computes", f"on {parts.device} in {str(parts.dtype).removeprefix('torch.')}"
    yield "folder", str(parts.folder)
    often = [
        f"every {number:g} {unit}"
        for unit, number in (("steps", run_cfg.get("save_every_steps")), ("minutes", run_cfg.get("save_every_minutes")))
        if number
    ]
    yield "", f"{CONFIG} there has all settings; {' and '.join(['each epoch', *often])} is saved as {LATEST}"


def _row(name: str, text: str) -> list[str]:
    begin = f"  {name:<15}"
    # A path is not broken, so that it can be copied.
    lines = textwrap.wrap(text, _WIDTH - len(begin), break_long_words=False, break_on_hyphens=False)
    return [(begin if number == 0 else " " * len(begin)) + line for number, line in enumerate(lines)]


def _splits(run_cfg: Any) -> list[str]:
    return [*run_cfg.train_splits, *run_cfg.valid_splits, *run_cfg.test_splits]


def _size(dataset: Any) -> str:
    if offers(dataset, CountedData):
        return f"{dataset.num_examples:,} examples"
    return "a stream" if isinstance(dataset, IterableDataset) else f"{len(dataset):,} items"

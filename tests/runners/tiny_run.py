"""A run small enough for tests: a model of a few weights, data made on the spot, and the `git_llm` runner.

Also a script, for tests that need a process of their own: `python tiny_run.py key=value ...` (keys of `run:`,
and `tiny.size`, `tiny.eval_size`, `tiny.seconds` per example, `tiny.dropout`, `tiny.stream`, `tiny.fails_at`).
"""

import argparse
import itertools
import logging
import os
import sys
import time
from collections.abc import Iterator

import torch
from omegaconf import OmegaConf
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from gitllm_plugin.host.locate import prepare

prepare()

from lavis.models.base_model import BaseModel  # noqa: E402

from gitllm_plugin.runners.git_llm import GitLLMRunner  # noqa: E402
from gitllm_plugin.tasks.m3it import M3ITTask  # noqa: E402

NUM_ANSWERS = 5
RUN = {
    "task": "m3it",
    "runner": "git_llm",
    "device": "cpu",
    "precision": "fp32",
    "init_lr": 0.05,
    "max_epoch": 2,
    "batch_size_train": 4,
    "batch_size_eval": 3,
    "valid_splits": ["val"],
    "test_splits": ["test"],
    "metrics": ["exact_match"],
}
TINY = {"size": 16, "eval_size": 7, "seconds": 0.0, "dropout": 0.1, "stream": False, "fails_at": 0}


class TinyModel(BaseModel):
    """Frozen embedding with a head tied to it, and a trainable projection; answers are digits.

    Its `fails_at`-th forward call, if any, finds no memory.
    """

    def __init__(self, dropout: float = 0.1, fails_at: int = 0):
        super().__init__()
        self.calls_to_failure = fails_at
        torch.manual_seed(0)
        self.embedding = nn.Embedding(NUM_ANSWERS, 8).requires_grad_(False)
        self.lm_head = nn.Linear(8, NUM_ANSWERS, bias=False)
        self.lm_head.weight = self.embedding.weight
        self.projection = nn.Linear(4, 8)
        self.text = nn.Parameter(torch.zeros(8))
        self.dropout = nn.Dropout(dropout)

    def logits(self, samples: dict) -> torch.Tensor:
        """[N, NUM_ANSWERS]; a batch without images leaves the projection unused."""
        hidden = self.text.expand(len(samples["text_input"]), -1)
        if samples["image"] is not None:
            hidden = hidden + self.dropout(self.projection(samples["image"]))
        return self.lm_head(hidden)

    def forward(self, samples: dict) -> dict:
        """The answer of example i counts as `len(question)` tokens, so that batches weigh differently."""
        self.calls_to_failure -= 1
        if self.calls_to_failure == 0:
            raise torch.OutOfMemoryError("out of memory, for a test")
        labels = torch.tensor([int(text) for text in samples["text_output"]])
        weights = torch.tensor([float(len(question)) for question in samples["question"]])
        losses = nn.functional.cross_entropy(self.logits(samples).float(), labels, reduction="none")
        return {"loss": (losses * weights).sum() / weights.sum(), "num_supervised_tokens": int(weights.sum())}

    def predict_answers(self, samples: dict, **kwargs) -> list[str]:
        """The likeliest digit."""
        return [str(index) for index in self.logits(samples).argmax(-1).tolist()]


class TinyData(Dataset):
    """`size` examples whose image says the answer; every fourth batch of four is without images."""

    def __init__(self, size: int, seconds: float = 0.0, text_only: bool = False):
        generator = torch.Generator().manual_seed(size)
        self.images = torch.randn(size, 4, generator=generator)
        self.labels = self.images.argmax(-1).tolist()
        self.seconds = seconds
        self.text_only = text_only

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        time.sleep(self.seconds)
        label = str(self.labels[index])
        return {
            "image": self.images[index],
            "text_input": f"prompt {index}",
            "text_output": label,
            "instance_id": str(index),
            "config": "even" if index % 2 == 0 else "odd",
            "references": [label],
            "question": "?" * (1 + index % 3),
        }

    def collater(self, items: list[dict]) -> dict:
        samples = {key: [item[key] for item in items] for key in items[0]}
        samples["image"] = None if self.text_only else torch.stack(samples["image"])
        return samples


class TinyStream(IterableDataset):
    """The examples of a `TinyData` again and again."""

    def __init__(self, data: TinyData):
        self.data = data
        self.collater = data.collater

    def __iter__(self) -> Iterator[dict]:
        return (self.data[index % len(self.data)] for index in itertools.count())


class TinyConfig:
    """What the runner uses of LAVIS's `Config`."""

    def __init__(self, run: dict):
        self.args = argparse.Namespace(cfg_path="tiny.yaml", options=["run.init_lr=0.05"])
        self.config = OmegaConf.create({"run": run, "model": {"arch": "tiny"}, "datasets": {}})

    @property
    def run_cfg(self):
        return self.config.run

    def to_dict(self) -> dict:
        return OmegaConf.to_container(self.config)


def build_runner(output_dir, model=None, data=None, tiny=None, **run) -> GitLLMRunner:
    """A runner over tiny data; `run` overrides `RUN`, `tiny` overrides `TINY`."""
    tiny = {**TINY, **(tiny or {})}
    cfg = TinyConfig({**RUN, "output_dir": str(output_dir), **run})
    if data is None:
        train = TinyData(tiny["size"], tiny["seconds"])
        data = {
            "train": TinyStream(train) if tiny["stream"] else train,
            "val": TinyData(tiny["eval_size"]),
            "test": TinyData(tiny["eval_size"] + 2),
        }
    model = model or TinyModel(tiny["dropout"], tiny["fails_at"])
    return GitLLMRunner(cfg, M3ITTask.setup_task(cfg), model, {"tiny": data}, job_id="unused")


def main(arguments: list[str]) -> None:
    """Train as `key=value` arguments say, in a process group where torchrun started one."""
    given = OmegaConf.to_container(OmegaConf.from_dotlist(arguments))
    tiny = given.pop("tiny", {})
    if "RANK" in os.environ:
        torch.distributed.init_process_group("gloo")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    build_runner(given.pop("output_dir"), tiny=tiny, **given).train()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])

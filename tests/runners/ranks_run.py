"""What several ranks do together, in one process group: `torchrun ranks_run.py FOLDER SCENARIO ...`.

Each scenario gives a value on every rank, which is written to `FOLDER/<scenario>_<rank>.json`.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from tiny_run import TinyData, build_runner
from torch.utils.data import IterableDataset

from gitllm_plugin.errors import DataError
from gitllm_plugin.modeling import build_git_llm
from gitllm_plugin.modeling.lora import LoraSettings
from gitllm_plugin.runners.parallel import shard, share, whole_tensors
from tests.split_batches import (
    FAMILIES,
    WEIGHTS,
    batch_of,
    loop_gradient,
    make_model,
    make_pictures,
    plain_gradient,
    random_split,
)
from tests.tiny_git import make_checkpoint

FOLDER = Path(sys.argv[1])
ALONE = {"valid_splits": [], "test_splits": []}
BATCHES = {"size": 17, "dropout": 0.0}  # 17 items divide among no number of ranks


def losses(runner) -> list[float]:
    dist.barrier()
    path = runner.output_dir / "metrics.jsonl"
    return [json.loads(line)["loss"] for line in path.read_text().splitlines()]


def equal_to_one_process(folder):
    """The same 8 items a step, whatever the number of ranks."""
    run = build_runner(folder, tiny=BATCHES, batch_size_train=4 // dist.get_world_size(), accum_grad_iters=2)
    run.train()
    scores = {split: json.loads((run.output_dir / f"{split}_metrics.json").read_text()) for split in ("val", "test")}
    lines = (run.output_dir / "result" / "test_epochbest.jsonl").read_text().splitlines()
    return {"losses": losses(run), "scores": scores, "predictions": len(lines), "folder": str(run.output_dir)}


def text_only_on_one_rank(folder):
    """Its projection is not used, and its gradients are waited for."""
    data = {"train": TinyData(16, text_only=dist.get_rank() == 1)}
    run = build_runner(folder, data=data, **ALONE)
    run.train()
    return losses(run)


class Stream(IterableDataset):
    """So many examples on this rank."""

    def __init__(self, count):
        self.data, self.count = TinyData(count), count

    def __iter__(self):
        return (self.data[index] for index in range(self.count))

    collater = TinyData.collater
    text_only = False


def streams_of_unequal_length(folder):
    """Rank 1's stream ends after 3 batches; all ranks learn of it, and what was trained is saved."""
    settings = {"max_epoch": None, "max_iters": 20, **ALONE}
    run = build_runner(folder, data={"train": Stream(12 if dist.get_rank() == 1 else 1000)}, **settings)
    try:
        run.train()
    except DataError as error:
        return {"error": str(error), "steps": run.position.steps, "saved": run.parts.checkpoints.latest.is_file()}


def ranks_that_log_different_keys(folder):
    """Rank 0 has one set of metrics, rank 1 none, as with some of LAVIS's tasks; rank 0's decide."""
    run = build_runner(folder, max_epoch=3, test_splits=[])
    scores = iter([-3.0, -1.0, -2.0])

    def evaluate(split, epoch, **kwargs):
        score = next(scores)
        return {"agg_metrics": score, "only_here": 1.0} if dist.get_rank() == 0 else {}

    run.eval_epoch = evaluate
    run.train()
    return {"best": run.best_agg_metric, "epoch": run.best_epoch}


def one_rank_is_told_to_stop(folder):
    """All stop after the same step."""
    run = build_runner(folder, max_epoch=50, **ALONE)
    original, batches = run.task.train_outputs, []

    def train_outputs(model, samples):
        batches.append(samples)
        if dist.get_rank() == 1 and len(batches) == 5:
            os.kill(os.getpid(), signal.SIGUSR1)
        return original(model, samples)

    run.task.train_outputs = train_outputs
    run.train()
    return {"steps": run.position.steps, "losses": losses(run)}


def an_error_of_rank_0_reaches_all(folder):
    """A folder that cannot be made."""
    folder.mkdir(exist_ok=True)
    (folder / "file").write_text("a file")
    try:
        build_runner(folder / "file")
    except ValueError as error:
        return str(error)


def gradients_of_git_llm_sharded(folder):
    """GIT-LLM under FSDP2, one rank's batch without images: the gradients of both batches in one process."""
    torch.manual_seed(0)
    lora = LoraSettings(rank=2, dropout=0.0)
    settings = {"lora": lora, "dtype": "float32", "gradient_checkpointing": True}
    model, _ = build_git_llm("tiny:llama", "tiny:clip", **settings)
    tokens = torch.arange(10, 34).reshape(4, 6)
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    batches = [{"input_ids": tokens[:2], "pixel_values": image}, {"input_ids": tokens[2:], "pixel_values": None}]

    def backward(model, batch):
        output = model(**batch, labels=batch["input_ids"], logits="none")
        output.loss.backward()
        return float(output.loss)

    model.train()
    for batch in batches:
        backward(model, batch)
    expected = {name: p.grad / 2 for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    model = shard(GitLLMWithDict(model), torch.device("cpu"))
    output = model(batches[dist.get_rank()])
    output["loss"].backward()
    found = whole_tensors({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    return {name: (found["model." + name] - value).abs().max().item() for name, value in expected.items() if found}


class GitLLMWithDict(torch.nn.Module):
    """With a `loss` as LAVIS's models give it."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def blocks(self):
        return self.model.decoder.blocks()

    def forward(self, batch):
        return {"loss": self.model(**batch, labels=batch["input_ids"], logits="none").loss}


def any_split_has_the_gradient_of_the_whole(folder):
    """Weighted answers in two pieces on each rank; the last pieces may have no images, on one rank or on both."""
    if dist.get_rank() == 0:
        folder.mkdir()
        make_checkpoint(folder)
    dist.barrier()
    differences = {}
    for family, sharding in [*((name, "none") for name in FAMILIES), ("tiny_llama", "fsdp")]:
        for number, weights in enumerate(WEIGHTS):
            model = make_model(family, folder).double()
            pictures = make_pictures(number, weights, plain=family == "git")
            split = random_split(pictures, 2, 2, seed=number)
            if family != "git":
                # Those without images at the end: of rank 1's pieces, or of each rank's.
                texts = make_pictures(50 + number, weights, plain=True, count=2)
                for place, picture in enumerate(texts):
                    split[1 - place][1] = [{**picture, "images": picture["images"][:0]}]
                    if number % 2:
                        break
            whole_batch = batch_of([p for pieces in split for piece in pieces for p in piece], torch.float64)
            loss, gradient = plain_gradient(model, whole_batch)
            batches = [batch_of(piece, torch.float64) for piece in split[dist.get_rank()]]
            model.zero_grad()
            found_loss, found = loop_gradient(share(model, torch.device("cpu"), sharding), batches)
            difference = (found - gradient).norm() / gradient.norm()
            differences[f"{family} {sharding} {weights}"] = [abs(found_loss - loss) / loss, difference.item()]
    return differences


def tiny_sharded(folder):
    """Any model of LAVIS's under FSDP2: the losses of DDP, and a checkpoint that goes on without sharding."""
    settings = {"tiny": {**BATCHES, "size": 16}, "batch_size_train": 2, **ALONE}
    plain = build_runner(folder / "ddp", max_epoch=2, **settings)
    plain.train()
    sharded = build_runner(folder / "fsdp", max_epoch=1, sharding="fsdp", lr_sched="constant", **settings)
    sharded.train()
    content = torch.load(sharded.output_dir / "checkpoint_latest.pth", weights_only=True)
    path = str(sharded.output_dir)
    again = build_runner(folder / "fsdp", max_epoch=2, resume_ckpt_path=path, sharding="fsdp", **settings)
    again.train()
    return {
        "ddp": losses(plain),
        "fsdp": losses(sharded),
        "weights": {name: list(value.shape) for name, value in content["model"].items()},
    }


def stuck(folder):
    """Rank 1 reads a batch forever; both end, and say where they are. Nothing comes after this."""
    data = {"train": TinyData(16, seconds=100.0 if dist.get_rank() == 1 else 0.0)}
    build_runner(folder, data=data, step_timeout_minutes=0.05, **ALONE).train()


if __name__ == "__main__":
    dist.init_process_group("gloo")
    for name in sys.argv[2:]:
        began = time.monotonic()
        value = globals()[name](FOLDER / name)
        (FOLDER / f"{name}_{dist.get_rank()}.json").write_text(json.dumps(value))
        dist.barrier()
        print(f"{name}: {time.monotonic() - began:.1f} s", flush=True)
    dist.destroy_process_group()

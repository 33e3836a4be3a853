"""Train the models of ``projects/git_llm/compare``, ask each for captions, and print the table."""

import argparse
import contextlib
import io
import json
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from omegaconf import OmegaConf
from PIL import Image
from torch.nn.utils import clip_grad_norm_

import gitllm_plugin
from examples.compare.data import read_data, write_data
from examples.compare.shapes import build, small_lavis, write_folders
from gitllm_plugin.errors import exit_status
from gitllm_plugin.metrics import score
from gitllm_plugin.resources import find_config
from gitllm_plugin.tables import Table

MODELS = ("git_llm", "git", "blip", "blip2")
_HEADER = ("model", "parameters", "images/s of a core", "training loss", "exact match", "ROUGE-L")


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m examples.compare", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--options", nargs="+", default=[], help="overrides of shared.yaml, such as run.steps=100")
    args = parser.parse_args(argv)
    shared = OmegaConf.merge(config_of("shared"), OmegaConf.from_dotlist(list(args.options)))
    print(compare(shared, args.only).markdown())
    return 0


def compare(shared: Any, names: Sequence[str] = MODELS) -> Table:
    """Train and ask models.

    Args:
        shared: what ``shared.yaml`` holds.
        names: their files in ``projects/git_llm/compare``.
    """
    gitllm_plugin.register()
    torch.set_num_threads(1)
    given = {name: config_of(name) for name in names}
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch), _quiet(), small_lavis(shared.sizes):
        folder = Path(scratch)
        configs = [OmegaConf.merge(shared, {"folder": scratch}, config) for config in given.values()]
        torch.manual_seed(shared.run.seed)
        write_folders(folder, shared.sizes)
        write_data(folder / "data", shared.data, shared.run.seed)
        rows = [_row(config, folder / "data") for config in configs]
    return Table(_HEADER, rows, numbers=range(1, len(_HEADER)))


def _row(config: Any, folder: Path) -> tuple[str, ...]:
    model = build(config.model, config.run.seed)
    data = read_data(folder, config.sizes.image, config.get("text_processor", {"name": "blip_caption"}))
    print(f"{config.name}: {config.run.steps} steps", file=sys.stderr, flush=True)
    loss, speed = train(model, data, config.run)
    scores = ask(model, data.vis_processor, folder, config.run.batch_size)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    figures = (f"{parameters:,}", f"{speed:.0f}", f"{loss:.3f}")
    return config.name, *figures, f"{scores['exact_match']:.1%}", f"{scores['rouge_l']:.3f}"


def train(model: Any, data: Any, run: Any) -> tuple[float, float]:
    """Train by AdamW; every model sees the same pictures in the same order.

    Returns:
        Mean loss of the last tenth of the steps, and images trained on per second of processor time.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.init_lr, weight_decay=run.weight_decay)
    rates = {"max_lr": run.init_lr, "total_steps": run.steps, "pct_start": 0.1, "cycle_momentum": False}
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, **rates)
    order = torch.Generator().manual_seed(run.seed)
    drawn = torch.randint(len(data), (run.steps, run.batch_size), generator=order).tolist()
    model.train()
    samples = [data[number] for number in range(len(data))]
    losses, seconds = [], 0.0
    for step in drawn:
        batch = data.collater([samples[number] for number in step])
        # Of the processor, not of the clock: other programs on the machine change nothing.
        begin = time.process_time()
        loss = model(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(model.parameters(), run.max_grad_norm)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        seconds += time.process_time() - begin
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last), run.steps * run.batch_size / seconds


@torch.no_grad()
def ask(model: Any, vis_processor: Any, folder: Path, batch_size: int) -> dict[str, float]:
    """Let a model caption the test's pictures, greedily, and score what it says."""
    model.eval()
    rows = json.loads((folder / "test.json").read_text())
    said: list[str] = []
    for begin in range(0, len(rows), batch_size):
        images = [Image.open(folder / "images" / row["image"]) for row in rows[begin : begin + batch_size]]
        batch = {"image": torch.stack([vis_processor(image) for image in images])}
        said += model.generate(batch, num_beams=1, max_length=40, min_length=1)
    references = [[row["caption"]] for row in rows]
    return score(("exact_match", "rouge_l"), [text.strip() for text in said], references).over_all


def config_of(name: str) -> Any:
    """Read a file of ``projects/git_llm/compare``."""
    return OmegaConf.load(find_config(f"projects/git_llm/compare/{name}.yaml"))


@contextlib.contextmanager
def _quiet() -> Any:
    """While entered, LAVIS and transformers do not say what they load."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        transformers.logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.disable(before)
            transformers.logging.enable_progress_bar()


if __name__ == "__main__":
    sys.exit(exit_status(main))

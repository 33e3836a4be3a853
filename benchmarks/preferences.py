"""Two answers to one prompt read together, and in a pass each: the time of a step's forward and backward pass.

``python -m benchmarks preferences``
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import results
from benchmarks.timing import in_turns, ratio
from gitllm_plugin.modeling.decoder import Decoder
from gitllm_plugin.modeling.families import FAMILIES
from gitllm_plugin.modeling.lora import LoraSettings, inject_lora
from gitllm_plugin.modeling.preference import log_likelihoods

SIZES: dict[str, Any] = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 8192,
}
"""Those of SmolLM2-135M's layers."""
SHAPES = {"49 image tokens": 49, "196 image tokens": 196, "256 image tokens": 256}
PROMPT, CHOSEN, REJECTED = 40, 12, 16
"""Tokens of a prompt and of the answers to it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``python -m benchmarks preferences``."""
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=results.FOLDER)


def run(arguments: argparse.Namespace) -> None:
    """Measure in float32 on one thread, write both files, print the page."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found: dict[str, Any] = {"where": results.surroundings(), "layers": arguments.layers}
    found["shapes"] = measure(arguments.layers, arguments.pairs, arguments.rounds)
    path = results.write("preferences", found, page(found), arguments.output)
    print(path.read_text())


def measure(layers: int, pairs: int, rounds: int) -> dict[str, Any]:
    """Give tokens that go through the layers, seconds of the processor, and their ratio, for each shape."""
    config = LlamaConfig(num_hidden_layers=layers, **SIZES)
    model, family = LlamaForCausalLM(config).requires_grad_(False), FAMILIES["llama"]
    inject_lora(model, LoraSettings(dropout=0.0), family.lora_targets)
    decoder, found = Decoder(model.train(), family), {}
    for name, size in SHAPES.items():
        ids, labels, mask = batch(pairs, config.vocab_size)
        image = torch.randn(pairs, size, config.hidden_size) / 10
        index = torch.arange(pairs)

        def together(image=image, ids=ids, mask=mask, labels=labels, index=index, size=size) -> None:
            both: dict[str, Any] = {"image_index": index.repeat(2), "like": index.repeat(2)}
            valid = torch.ones(pairs, size, dtype=torch.bool)
            log_likelihoods(decoder, image, valid, ids, mask, labels, **both).sum().backward()

        def apart(image=image, ids=ids, mask=mask, labels=labels, size=size) -> None:
            valid = torch.ones(pairs, size, dtype=torch.bool)
            for part in (slice(pairs), slice(pairs, None)):
                log_likelihoods(decoder, image, valid, ids[part], mask[part], labels[part]).sum().backward()

        times = in_turns({"together": together, "apart": apart}, rounds)
        share = ratio(times["together"].processor, times["apart"].processor)
        found[name] = {
            "tokens": [pairs * (size + PROMPT + CHOSEN + REJECTED), pairs * (2 * (size + PROMPT) + CHOSEN + REJECTED)],
            "seconds": [min(times["together"].processor), min(times["apart"].processor)],
            "share": str(share),
        }
    return found


def batch(pairs: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Make ids, labels and mask of all chosen and then all rejected texts."""
    longest = PROMPT + max(CHOSEN, REJECTED)
    ids = torch.randint(3, vocabulary, (2 * pairs, longest))
    ids[pairs:, :PROMPT] = ids[:pairs, :PROMPT]
    lengths = torch.tensor([PROMPT + CHOSEN] * pairs + [PROMPT + REJECTED] * pairs)
    place = torch.arange(longest)
    mask = (place < lengths[:, None]).long()
    return ids, torch.where((place >= PROMPT) & mask.bool(), ids, -100), mask


def page(found: dict[str, Any]) -> str:
    """Give the results as Markdown."""
    rows = [
        [name, *shape["tokens"], *(f"{seconds:.2f}" for seconds in shape["seconds"]), shape["share"]]
        for name, shape in found["shapes"].items()
    ]
    head = ["a pair behind", "tokens together", "in two passes", "s together", "s in two passes", "share"]
    return (
        results.heading("Two answers read together", found["where"])
        + f"\nForward and backward pass of a language model ({found['layers']} layers of SmolLM2-135M's sizes, LoRA, "
        f"float32, one thread), seconds of the processor; prompts of {PROMPT} tokens, answers of {CHOSEN} and "
        f"{REJECTED}. Share: median, least and most of the rounds.\n\n" + results.table(head, rows)
    )

"""Greedy decoding: LoRA merged or not, a growing cache or a static one, eager or compiled.

``python -m benchmarks decoding``
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CompileConfig

from benchmarks import results
from benchmarks.batches import random_batch
from benchmarks.shapes import build
from benchmarks.timing import in_turns, ratio
from gitllm_plugin.modeling import GitLLM
from gitllm_plugin.modeling.lora import lora_merged

UNMERGED = "LoRA beside its weights"
BASE = "LoRA merged"
WAYS: dict[str, dict[str, Any]] = {
    UNMERGED: {},
    BASE: {},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
    "static cache, compiled": {"cache_implementation": "static"},
}
"""Name -> arguments of ``generate``; all but the first with LoRA merged."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``python -m benchmarks decoding``."""
    parser.add_argument("--shape", default="opt-350m", help="a key of benchmarks.shapes.SHAPES")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--new-tokens", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="needs a C++ compiler")
    parser.add_argument("--output", type=Path, default=results.FOLDER)


def run(arguments: argparse.Namespace) -> None:
    """Measure, write both files, print the page."""
    torch.set_num_threads(arguments.threads)
    model = build(arguments.shape).eval()
    ways = [name for name in WAYS if arguments.compile or "compiled" not in name]
    found: dict[str, Any] = {"where": results.surroundings(), "shape": arguments.shape, "cases": []}
    for size in arguments.batch:
        found["cases"].append(measure(model, size, arguments.new_tokens, arguments.rounds, ways))
    path = results.write(f"decoding-{arguments.shape}", found, page(found), arguments.output)
    print(path.read_text())


def measure(model: GitLLM, size: int, new_tokens: int, rounds: int, ways: list[str]) -> dict[str, Any]:
    """Decode ``size`` prompts about as many images: with LoRA beside its weights, then merged, those in turns.

    Raises:
        AssertionError: in float32, a way gives other tokens than the first.
    """
    decoders = {name: _decoder(model, name, size, new_tokens) for name in ways}
    unmerged = {name: decoders.pop(name) for name in (UNMERGED,)}
    tokens = {name: decode() for name, decode in unmerged.items()}
    times = in_turns(unmerged, rounds)
    with lora_merged(model.language_model):
        tokens |= {name: decode() for name, decode in decoders.items()}
        times |= in_turns(decoders, rounds)
    same = {name: float((tokens[name] == tokens[UNMERGED]).float().mean()) for name in ways}
    if model.language_model.dtype == torch.float32:
        assert all(share == 1 for share in same.values()), f"share of equal tokens: {same}"
    on_gpu = model.projection.weight.is_cuda
    seconds = {name: taken.wall if on_gpu else taken.processor for name, taken in times.items()}
    return {
        "batch": size,
        "new_tokens": new_tokens,
        "ways": {
            name: {
                "seconds": seconds[name],
                "tokens_per_second": size * new_tokens / statistics.median(seconds[name]),
                "faster": str(ratio(seconds[BASE], seconds[name])),
                "share_of_equal_tokens": same[name],
            }
            for name in ways
        },
    }


def _decoder(model: GitLLM, name: str, size: int, new_tokens: int) -> Callable[[], Tensor]:
    batch = random_batch(model, size, 1)
    options = dict(WAYS[name])
    if "compiled" in name:
        compile_config: Any = CompileConfig()
        compile_config._compile_all_devices = True  # else transformers compiles on GPUs alone
        options["compile_config"] = compile_config

    def decode() -> Tensor:
        return model.generate(
            batch.input_ids,
            batch.attention_mask,
            batch.pixel_values,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            **options,
        )

    return decode


def page(found: dict[str, Any]) -> str:
    """Give the results as Markdown."""
    parts = [
        results.heading(f"Decoding, {found['shape']}", found["where"]),
        "Encoding and prefill included. Times are seconds of the processor in one process, with LoRA merged in turns: "
        "median (least to most). Tokens of all ways are equal.\n",
    ]
    parts += [case_table(case) for case in found["cases"]]
    return "\n".join(parts)


def case_table(case: dict[str, Any]) -> str:
    """One batch size as a heading and a table."""
    rows = [
        [name, f"{way['tokens_per_second']:.2f}", way["faster"], f"{way['share_of_equal_tokens']:.3f}"]
        for name, way in case["ways"].items()
    ]
    header = ["way", "new tokens/s", f"faster than {BASE.lower().replace('lora', 'LoRA')}", "equal tokens"]
    return f"## Batch {case['batch']}, {case['new_tokens']} new tokens\n\n{results.table(header, rows)}\n"

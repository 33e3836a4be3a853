"""Ways to join image and text: image tokens, time and memory of a training step, and what three seeds learnt."""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch

from benchmarks import results
from benchmarks.held import held_for_backward
from benchmarks.timing import in_turns
from gitllm_plugin.config.model import IMAGE_MARK, AttentionKind, ProjectionKind
from gitllm_plugin.experiments.report import results_table
from gitllm_plugin.modeling import BuildSettings, LoraSettings, build_git_llm, make_text_encoder
from gitllm_plugin.modeling.marks import place_pictures
from gitllm_plugin.tables import Table

_HEADER = (
    "`model.attention`",
    "`model.projection`",
    "pictures stand",
    "image tokens",
    "time of a step",
    "held for the backward pass",
    "exact match, three seeds",
)
_IMAGES = 4
_TEXTS = (
    ("Describe this: {}", "a teal rectangle"),
    ("of {} tell the color of the rectangle:", "teal"),
    ("in the picture {} which shape is it?", "rectangle"),
)
"""About each picture, with the place of one that stands in the text."""

_WAYS: dict[tuple[AttentionKind, ProjectionKind, str], tuple[str, str] | None] = {
    ("git", "linear_norm", "in front"): ("laptop_masks", "git"),
    ("prompt", "linear_norm", "in front"): ("laptop_masks", "prompt"),
    ("causal", "linear_norm", "in front"): ("laptop_masks", "causal"),
    ("git", "linear", "in front"): ("laptop_projections", "linear"),
    ("git", "mlp", "in front"): ("laptop_projections", "mlp"),
    ("git", "pixel_shuffle", "in front"): ("laptop_projections", "pixel_shuffle"),
    ("git", "pool", "in front"): ("laptop_projections", "pool"),
    ("git", "linear_norm", "in the text"): None,
    ("prompt", "linear_norm", "in the text"): None,
    ("causal", "linear_norm", "in the text"): None,
}
"""Mask, projection, places -> the experiment, and the group of its runs, that trained so."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("--language-model", default="tiny:llama", help="name or folder")
    parser.add_argument("--image-encoder", default="tiny:clip", help="name or folder")
    parser.add_argument("--image-size", type=int, default=None, help="by default the encoder's")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=results.FOLDER)


def run(arguments: argparse.Namespace) -> None:
    """Measure in turns with one thread, print the table and write it for the page."""
    torch.set_num_threads(1)
    steps = {way: _Step(arguments, *way) for way in _WAYS}
    times = in_turns({str(way): step for way, step in steps.items()}, arguments.rounds)
    seconds = {way: statistics.median(times[str(way)].processor) for way in steps}
    held = {way: held_for_backward(step.model, step) for way, step in steps.items()}
    first = next(iter(steps))
    rows = []
    for way, step in steps.items():
        told = f"{seconds[way] / seconds[first]:.2f}" + (f" ({seconds[way]:.2f} s)" if way == first else "")
        tokens = step.model.tokens_of_image(step.pixels)
        rows.append((*way, str(tokens), told, f"{held[way] / held[first]:.2f}", _exact_match(_WAYS[way])))
    table = Table(_HEADER, rows, numbers=(3, 5, 6))
    print(table.markdown())
    size = f" --image-size {arguments.image_size}" if arguments.image_size else ""
    command = f"python -m benchmarks joins {results.models_of(arguments)}{size}"
    print(results.write_table("joins", command, table, arguments.output))


class _Step:
    """Forward and backward of four pictures with three texts each, the model joined in one way."""

    def __init__(
        self, arguments: argparse.Namespace, attention: AttentionKind, projection: ProjectionKind, places: str
    ) -> None:
        torch.manual_seed(0)
        settings = BuildSettings(dtype="float32", lora=LoraSettings(), attention=attention, projection=projection)
        self.model, tokenizer = build_git_llm(arguments.language_model, arguments.image_encoder, settings)
        self.model.train()
        size = arguments.image_size or self.model.image_encoder.image_size or 224
        self.pixels = torch.randn(_IMAGES, 3, size, size)
        self.image_index = torch.arange(_IMAGES).repeat_interleave(len(_TEXTS))
        prompts, answers = zip(*(_TEXTS * _IMAGES), strict=True)
        in_text = places == "in the text"
        encoder = make_text_encoder(self.model.language_model, tokenizer, image_places="text" if in_text else "front")
        self.text = encoder.prompts_and_answers(
            [p.format(IMAGE_MARK if in_text else "") for p in prompts], list(answers)
        )
        count = len(prompts)
        self.marks = place_pictures(self.text.marks, [1] * count, [None] * count) if in_text else None

    def __call__(self) -> None:
        text = self.text
        out = self.model(
            text.input_ids,
            text.attention_mask,
            self.pixels,
            text.labels,
            image_index=self.image_index,
            image_marks=self.marks,
            logits="none",
        )
        out.loss.backward()
        self.model.zero_grad()


def _exact_match(runs: tuple[str, str] | None) -> str:
    """Give the mean of an experiment's runs with its interval, as its own table has it."""
    if runs is None:
        return ""
    experiment, group = runs
    found = results_table(json.loads((results.FOLDER / f"{experiment}.json").read_text(encoding="utf-8"))["runs"])
    return next(row for row in found.rows if row[0] == group)[found.header.index("exact match")]

"""Answers by this package and by transformers' own class of the same model: which are equal, and what one costs.

``python -m benchmarks stock --model RUN --rows 'test/*.jsonl' --limit 500``
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks import results
from benchmarks.llama_cpp import add_row_arguments, read_rows, truths
from gitllm_plugin.host.export import export_run
from gitllm_plugin.host.open_model import open_pipeline
from gitllm_plugin.inference.asking import Decoding
from gitllm_plugin.m3it.images import decode_base64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``python -m benchmarks stock``."""
    add_row_arguments(parser, model="a training run of model.projection=linear")


def run(arguments: argparse.Namespace) -> None:
    """Compare in float32 on one thread, write both files, print the page."""
    torch.set_num_threads(1)
    rows = read_rows(arguments.rows, arguments.limit)
    pipeline = open_pipeline(arguments.model, dtype="float32")
    with tempfile.TemporaryDirectory() as folder:
        export_run(arguments.model, Path(folder) / "stock", to="transformers", dtype="float32")
        stock = Stock(Path(folder) / "stock")
        found = {"where": results.surroundings(), **compare(pipeline, stock, rows, arguments.max_new_tokens)}
    path = results.write("stock", found, page(found), arguments.output)
    print(path.read_text())


class Stock:
    """The exported folder, opened and asked as its card says."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoImageProcessor, AutoTokenizer, PaliGemmaForConditionalGeneration

        self.model: Any = PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.images = AutoImageProcessor.from_pretrained(folder)

    @torch.no_grad()
    def answer(self, picture: bytes, prompt: str, max_new_tokens: int) -> tuple[str, torch.Tensor]:
        """Give the answer, and the logits of its first token."""
        pixels = self.images(Image.open(io.BytesIO(picture)).convert("RGB"), return_tensors="pt")["pixel_values"]
        text = self.tokenizer(prompt.rstrip(), return_tensors="pt")["input_ids"]
        vision = self.model.config.vision_config
        image = torch.full((1, (vision.image_size // vision.patch_size) ** 2), self.model.config.image_token_id)
        inputs = {
            "pixel_values": pixels,
            "input_ids": torch.cat([image, text], 1),
            "attention_mask": torch.ones(1, image.shape[1] + text.shape[1], dtype=torch.long),
            "token_type_ids": torch.cat([torch.zeros_like(image), torch.ones_like(text)], 1),
        }
        out = self.model.generate(
            **inputs, max_new_tokens=max_new_tokens, return_dict_in_generate=True, output_logits=True
        )
        new = out.sequences[0, image.shape[1] + text.shape[1] :]
        return self.tokenizer.decode(new, skip_special_tokens=True).strip(), out.logits[0][0]


def compare(pipeline: Any, stock: Stock, rows: list[dict[str, Any]], max_new_tokens: int) -> dict[str, Any]:
    """Answer each row in both ways; seconds are the processor's."""
    equal, right, furthest, different, seconds = 0, 0, 0.0, [], [0.0, 0.0]
    said: set[str] = set()
    for row in rows:
        picture = row["image_base64_str"]
        data = decode_base64(picture if isinstance(picture, str) else picture[0])
        question, instruction = row["inputs"], row["instruction"] or None
        begin = time.process_time()
        ours = pipeline.answer(data, question, instruction, Decoding(max_new_tokens=max_new_tokens))
        between = time.process_time()
        theirs, logits = stock.answer(data, pipeline.prompt(question, instruction), max_new_tokens)
        seconds = [seconds[0] + between - begin, seconds[1] + time.process_time() - between]
        wanted = first_logits(pipeline, data, question, instruction)
        furthest = max(furthest, float((logits - wanted).abs().max() / wanted.abs().max()))
        equal, right = equal + (ours == theirs), right + (theirs in truths(row))
        said.add(theirs)
        if ours != theirs:
            different.append([ours, theirs])
    return {
        "rows": len(rows),
        "equal": equal,
        "right": right,
        "kinds_of_answers": len(said),
        "furthest_logits": furthest,
        "ms": [1000 * total / len(rows) for total in seconds],
        "different": different[:20],
    }


@torch.no_grad()
def first_logits(pipeline: Any, picture: bytes, question: str, instruction: str | None) -> torch.Tensor:
    """Compute this package's logits behind the prompt."""
    text = pipeline.text_encoder.prompts([pipeline.prompt(question, instruction)])
    return pipeline.model(text.input_ids, text.attention_mask, pipeline.pixels(picture)).logits[0, -1]


def page(found: dict[str, Any]) -> str:
    """Give the results as Markdown."""
    rows = [
        ["greedy answers equal", f"{found['equal']} of {found['rows']}"],
        ["right answers", found["right"]],
        ["different answers given", found["kinds_of_answers"]],
        ["furthest logits of a first token, of the largest", f"{found['furthest_logits']:.1e}"],
        ["ms of the processor an answer, this package", f"{found['ms'][0]:.0f}"],
        ["ms of the processor an answer, transformers' class", f"{found['ms'][1]:.0f}"],
    ]
    return (
        results.heading("Answers by transformers' own class", found["where"])
        + "\nFloat32, on one thread, from the picture's file to the text: this package by the run, and "
        "`PaliGemmaForConditionalGeneration` with the tokenizer and the image processor of the folder that "
        "`gitllm export --to transformers` made of it.\n\n" + results.table(["", "found"], rows)
    )

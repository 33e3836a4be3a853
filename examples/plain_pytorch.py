"""Build, train and use a GIT-LLM in plain PyTorch, without LAVIS: python examples/plain_pytorch.py

With random parts of a few kilobytes by default; give names or folders of Hugging Face models for real ones.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from gitllm_plugin.errors import exit_status
from gitllm_plugin.modeling import LoraSettings, build_git_llm, make_text_encoder, parameter_groups
from gitllm_plugin.processors.image_transform import NORMALIZATIONS, ImageTransform

COLORS = ("red", "green", "blue", "yellow")


def main(argv: Sequence[str] | None = None) -> int:
    """Teach it the colours of four pictures."""
    parser = argparse.ArgumentParser(description="Train a GIT-LLM on four coloured squares.")
    parser.add_argument("--language-model", default="tiny:llama")
    parser.add_argument("--image-encoder", default="tiny:clip")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=120)
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    model, tokenizer = build_git_llm(
        args.language_model, args.image_encoder, trainable="proj+lora", lora=LoraSettings(rank=8), dtype="float32"
    )
    text = make_text_encoder(model.language_model, tokenizer)
    transform = ImageTransform(args.image_size, *NORMALIZATIONS["clip"])
    pixels = torch.stack([transform(Image.new("RGB", (64, 64), color)) for color in COLORS])
    prompts = ["##Question: what color is it? ##Answer:"] * len(COLORS)
    batch = text.prompts_and_answers(prompts, COLORS)

    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.01), lr=1e-2)
    model.train()
    for step in range(args.steps):
        output = model(batch.input_ids, batch.attention_mask, pixels, batch.labels, logits="none")
        assert output.loss is not None  # labels were given
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step}: loss {output.loss.item():.3f}")

    model.eval()
    asked = text.prompts(prompts)
    ends: dict[str, Any] = text.special_tokens
    tokens = model.generate(asked.input_ids, asked.attention_mask, pixels, max_new_tokens=6, **ends)
    answers = text.decode(tokens)
    print("\n".join(f"{color}: {answer}" for color, answer in zip(COLORS, answers, strict=True)))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))

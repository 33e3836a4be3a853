"""Small models and batches that the tests of modeling share."""

import torch

from gitllm_plugin.modeling import GitLLM, LoraSettings, TextEncoder, build_git_llm
from gitllm_plugin.modeling.families import FAMILIES

FAMILY_NAMES = sorted(FAMILIES)
MEMBERS = [(name, variant) for name in FAMILY_NAMES for variant in (None, *FAMILIES[name].variants)]
"""Every family, and every variant of it that works differently inside."""
TEXTS = [
    ("##Question: is it red? ##Answer:", "no"),
    ("##Question: what color is the shape in the image? ##Answer:", "a red circle"),
    ("hello ##Answer:", "yes"),
]


def tiny_model(family: str, *, encoder: str = "clip", **settings) -> tuple[GitLLM, TextEncoder]:
    """A tiny model whose LoRA update is not zero and whose image matters."""
    settings.setdefault("lora", LoraSettings(dropout=0.0))
    model, tokenizer = build_git_llm(f"tiny:{family}", f"tiny:{encoder}", dtype="float32", **settings)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
            if name.startswith("language_model") and parameter.ndim == 2 and "embed" not in name:
                parameter.mul_(2)  # random weights of the usual size hardly move a logit
    return model, TextEncoder(tokenizer)


def pixels(count: int, frames: int | None = None) -> torch.Tensor:
    shape = (count, 3, 32, 32) if frames is None else (count, frames, 3, 32, 32)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def shift_padding(tensor: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Right-padded rows ``[N, T, ...]`` made left-padded."""
    size = tensor.shape[1]
    return torch.stack([torch.roll(row, int(size - n), 0) for row, n in zip(tensor, lengths, strict=True)])

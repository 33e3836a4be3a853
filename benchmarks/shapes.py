"""Models of published sizes with random weights, made on the spot: speed depends on shapes and not on values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from benchmarks.vision_sizes import TINY_VIT, VIT_B_16, VIT_L_14
from gitllm_plugin.modeling import BuildSettings, GitLLM, ImageEncoder, LoraSettings
from gitllm_plugin.modeling.build import prepare
from gitllm_plugin.modeling.families import FAMILIES


@dataclass(frozen=True)
class Shape:
    """Sizes of one GIT-LLM.

    Attributes:
        model_type: of the language model, as transformers names it.
        vision: sizes of the CLIP vision tower.
        sizes: of the language model, by the names of its configuration.
    """

    model_type: str
    vision: dict[str, Any]
    sizes: dict[str, Any] = field(default_factory=dict)


def _tiny(model_type: str) -> Shape:
    sizes = {**FAMILIES[model_type].tiny_config, "vocab_size": 512}
    context = "max_seq_len" if "max_seq_len" in sizes else "max_position_embeddings"
    return Shape(model_type, TINY_VIT, {**sizes, context: 1024})


def _opt(**sizes: Any) -> dict[str, Any]:
    # Dropout off on both sides: losses and gradients must be comparable.
    return {"vocab_size": 50272, "max_position_embeddings": 2048, "dropout": 0.0, **sizes}


SHAPES = {
    "tiny-opt": _tiny("opt"),
    "tiny-llama": _tiny("llama"),
    "tiny-mpt": _tiny("mpt"),
    "opt-350m": Shape(
        "opt",
        VIT_B_16,
        _opt(
            hidden_size=1024,
            word_embed_proj_dim=512,
            ffn_dim=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            do_layer_norm_before=False,
        ),
    ),
    "opt-350m-vit-l": Shape(
        "opt",
        VIT_L_14,
        _opt(
            hidden_size=1024,
            word_embed_proj_dim=512,
            ffn_dim=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            do_layer_norm_before=False,
        ),
    ),
    "opt-6.7b": Shape(
        "opt",
        VIT_L_14,
        _opt(hidden_size=4096, ffn_dim=16384, num_hidden_layers=32, num_attention_heads=32),
    ),
    "llama-2-7b": Shape(
        "llama",
        VIT_L_14,
        {
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "max_position_embeddings": 4096,
        },
    ),
    "mpt-7b": Shape(
        "mpt",
        VIT_L_14,
        {"vocab_size": 50432, "d_model": 4096, "n_heads": 32, "n_layers": 32, "max_seq_len": 2048},
    ),
}


def build(name: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> GitLLM:
    """Give a GIT-LLM of this shape with LoRA on query, key and value, as the article trains it, in training mode.

    Args:
        name: a key of :data:`SHAPES`.
        device: where the weights are drawn.
        dtype: of frozen weights.
    """
    shape = SHAPES[name]
    torch.manual_seed(0)
    with torch.device(device):
        decoder = AutoModelForCausalLM.from_config(AutoConfig.for_model(shape.model_type, **shape.sizes), dtype=dtype)
        encoder = ImageEncoder.from_config(CONFIG_MAPPING["clip_vision_model"](**shape.vision)).to(dtype)
        model = GitLLM(encoder, decoder)
        prepare(model, BuildSettings(trainable="proj+lora", lora=LoraSettings(dropout=0.0)))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:  # zero at the start of a training, which would hide LoRA's gradients
                torch.nn.init.normal_(parameter, std=0.02)
    return model.to(device).train()

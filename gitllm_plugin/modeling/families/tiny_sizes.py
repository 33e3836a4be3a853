"""Sizes of a tiny decoder, by the names that LLaMA's configuration has and most others took over."""

from typing import Any

LLAMA_NAMES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,  # grouped queries
    "max_position_embeddings": 256,
}

GPT2_NAMES: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}

"""Language models of transformers as GGUF: their settings and weights by llama.cpp's names, family by family."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
from gguf import MODEL_ARCH, GGUFWriter

from gitllm_plugin.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ARCHITECTURES: dict[str, MODEL_ARCH] = {
    "llama": MODEL_ARCH.LLAMA,
    "mistral": MODEL_ARCH.LLAMA,
    "qwen2": MODEL_ARCH.QWEN2,
    "qwen3": MODEL_ARCH.QWEN3,
    "phi3": MODEL_ARCH.PHI3,
    "stablelm": MODEL_ARCH.STABLELM,
    "smollm3": MODEL_ARCH.SMOLLM3,
}
"""Hugging Face ``model_type`` -> llama.cpp's architecture, where it computes the same."""

_HALF_GELU = "llama.cpp looks GELU up in a table of half precision, which alone moves logits by more than 1e-4"
REFUSED: dict[str, str] = {
    "opt": "llama.cpp does not know it",
    "mpt": "llama.cpp's ALiBi is symmetric, where that of an image, whose patches see each other, is not",
    "gpt_neox": _HALF_GELU,
    "gpt2": _HALF_GELU,
    "falcon": _HALF_GELU,
    "gemma": _HALF_GELU,
    "gemma2": _HALF_GELU,
    "gemma3_text": _HALF_GELU,
}
"""Hugging Face ``model_type`` -> why it is not exported."""

_ROPES = ("default", "linear", "llama3")
_ROTATES_PAIRS = ("llama", "mistral", "smollm3")
_QUERY_OR_KEY = re.compile(r"\.([qk])_proj\.")
_OF_ONE_HEAD = re.compile(r"\.norms\.\d+\.(weight|bias)$")


def check_known(config: Any) -> None:
    """Refuse a language model that llama.cpp does not compute as transformers does.

    Raises:
        ConfigError: with the reason.
    """
    kind = config.model_type
    if kind not in ARCHITECTURES:
        why = REFUSED.get(kind, "nobody has compared llama.cpp's with it")
        raise ConfigError(f"{kind} is not exported to llama.cpp: {why}. These are: {', '.join(sorted(ARCHITECTURES))}")
    rope = _rope(config).get("rope_type", "default")
    if rope not in _ROPES:
        raise ConfigError(f"rotary positions of type {rope!r} are not exported to llama.cpp; {', '.join(_ROPES)} are")
    layers = getattr(config, "no_rope_layers", None)
    if layers and layers != [int((place + 1) % 4 != 0) for place in range(len(layers))]:
        raise ConfigError(f"no_rope_layers is {layers}; llama.cpp leaves positions out in every fourth layer")


def write_settings(writer: GGUFWriter, model: PreTrainedModel) -> None:
    """Write what llama.cpp must know of a decoder beside its weights."""
    config: Any = model.config
    heads, rope = config.num_attention_heads, _rope(config)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_key_length(_head(config))
    writer.add_value_length(_head(config))
    writer.add_rope_dimension_count(int(_head(config) * rope.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if config.model_type == "stablelm":
        writer.add_layer_norm_eps(config.layer_norm_eps)
        writer.add_parallel_residual(config.use_parallel_residual)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def read_weights(model: PreTrainedModel) -> Iterator[tuple[str, np.ndarray]]:
    """Give a decoder's weights by llama.cpp's names, float32, in the order that llama.cpp computes with.

    Args:
        model: without LoRA.

    Raises:
        ConfigError: a weight has no name there.
    """
    config: Any = model.config
    names = gguf.get_tensor_name_map(ARCHITECTURES[config.model_type], config.num_hidden_layers)
    heads: dict[str, list[np.ndarray]] = {}
    decoder: Any = model
    tied = decoder.get_output_embeddings().weight is decoder.get_input_embeddings().weight
    for name, tensor in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        x = tensor.detach().float().cpu().numpy()
        # StableLM's norms of single heads are weights of their own in transformers.
        whole = _OF_ONE_HEAD.sub(r".\1", name)
        found = names.get_name(whole, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ConfigError(f"{name} of {config.model_type} has no place in llama.cpp's model of that name")
        if whole != name:
            heads.setdefault(found, []).append(x)
        else:
            yield found, _in_pairs(config, name, x)
    for found, parts in heads.items():
        yield found, np.stack(parts)
    if _rope(config).get("rope_type") == "llama3":
        yield "rope_freqs.weight", _llama3_factors(config)


def context_of(config: Any, most: int) -> int:
    """Tell how many positions are computed as in training: those of the model, and within its window if it has one."""
    has_window = getattr(config, "use_sliding_window", True)
    window = getattr(config, "sliding_window", None) if has_window else None
    return min(most, config.max_position_embeddings, window or most)


def _head(config: Any) -> int:
    # None is the default of some configurations.
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _rope(config: Any) -> dict[str, Any]:
    return config.rope_parameters


def _llama3_factors(config: Any) -> np.ndarray:
    """Compute by what frequencies are divided (transformers, ``modeling_rope_utils.py``)."""
    rope = _rope(config)
    low, high, old = rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
    factors = []
    for power in range(0, _head(config), 2):
        turns = old / (2 * math.pi * rope["rope_theta"] ** (power / _head(config)))
        smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
        factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)


def _in_pairs(config: Any, name: str, x: np.ndarray) -> np.ndarray:
    """Order rows of queries and keys for rotary positions of pairs, where transformers rotates halves."""
    if config.model_type not in _ROTATES_PAIRS or not (found := _QUERY_OR_KEY.search(name)):
        return x
    heads = config.num_attention_heads if found[1] == "q" else config.num_key_value_heads
    return x.reshape(heads, 2, x.shape[0] // heads // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)

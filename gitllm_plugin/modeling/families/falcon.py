"""Falcon: rotary positions, or ALiBi (Falcon-RW); one, several or all key-value heads."""

from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from gitllm_plugin.modeling.families.family import Family, Positions


def _positions(config: PreTrainedConfig) -> Positions:
    return "slots" if getattr(config, "alibi", False) else "sequence"


def _split_heads(self: Any, fused_qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split ``[B, S, ...]`` into queries, keys and values ``[B, S, heads, D]``, as transformers does, but by slices.

    transformers takes keys and values by lists of one index, each of which a GPU has to be sent, and waits for.
    """
    if self.new_decoder_architecture:
        split = fused_qkv.unflatten(-1, (-1, self.num_heads // self.num_kv_heads + 2, self.head_dim))
        query, key, value = split[..., :-2, :], split[..., -2:-1, :], split[..., -1:, :]
        return query.flatten(2, 3), key.expand_as(query).flatten(2, 3), value.expand_as(query).flatten(2, 3)
    if not self.multi_query:
        query, key, value = fused_qkv.unflatten(-1, (self.num_heads, 3, self.head_dim)).unbind(-2)
        return query, key, value
    split = fused_qkv.unflatten(-1, (self.num_heads + 2, self.head_dim))
    return split[..., :-2, :], split[..., -2:-1, :], split[..., -1:, :]


def _prepare() -> None:
    from transformers.models.falcon.modeling_falcon import FalconAttention

    FalconAttention._split_heads = _split_heads


FALCON = Family(
    name="falcon",
    model_types=("falcon",),
    lora_targets=("query_key_value",),
    positions=_positions,
    prepare=_prepare,
    chat_template=(
        "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}Assistant:{% endif %}"
    ),
    tiny_config={
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    },
    variants={
        "alibi": {"alibi": True, "multi_query": False, "bias": True},
        "new_decoder_architecture": {"new_decoder_architecture": True, "num_kv_heads": 2},
    },
)

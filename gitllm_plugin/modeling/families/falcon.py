"""Falcon: rotary positions, or ALiBi (Falcon-RW); one, several or all key-value heads."""

from transformers import PreTrainedConfig

from gitllm_plugin.modeling.families.family import Family, Positions


def _positions(config: PreTrainedConfig) -> Positions:
    return "slots" if getattr(config, "alibi", False) else "sequence"


FALCON = Family(
    name="falcon",
    model_types=("falcon",),
    lora_targets=("query_key_value",),
    positions=_positions,
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

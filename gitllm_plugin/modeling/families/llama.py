"""LLaMA and decoders of its shape (SmolLM2, TinyLlama, Vicuna): rotary positions over image then text."""

from gitllm_plugin.modeling.families.family import Family

LLAMA = Family(
    name="llama",
    model_types=("llama",),
    positions="sequence",
    lora_targets=("q_proj", "k_proj", "v_proj"),
    tiny_config={
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,  # grouped-query attention
        "max_position_embeddings": 256,
    },
)

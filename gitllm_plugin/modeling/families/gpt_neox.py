"""GPT-NeoX and Pythia: partial rotary positions over image then text, fused query-key-value."""

from gitllm_plugin.modeling.families.family import Family

GPT_NEOX = Family(
    name="gpt_neox",
    model_types=("gpt_neox",),
    lora_targets=("query_key_value",),
    tiny_config={
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
    },
    variants={"sequential_residual": {"use_parallel_residual": False}},
)

"""LLaMA 1 to 3 and decoders of its shape (SmolLM 1 and 2, TinyLlama, Vicuna): rotary positions, grouped queries."""

from gitllm_plugin.modeling.families.family import Family
from gitllm_plugin.modeling.families.tiny_sizes import LLAMA_NAMES

LLAMA = Family(
    name="llama",
    model_types=("llama",),
    lora_targets=("q_proj", "k_proj", "v_proj"),
    chat_template=(
        "{% for message in messages %}{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]"
        "{% else %} {{ message['content'] }} {{ eos_token }}{% endif %}{% endfor %}"
    ),
    tiny_config=LLAMA_NAMES,
    variants={
        "llama3": {
            "rope_theta": 500000.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
        "llama2_without_grouped_queries": {"num_key_value_heads": 4},
    },
)

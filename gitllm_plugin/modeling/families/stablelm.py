"""StableLM: partial rotary positions, LayerNorm instead of RMSNorm."""

from gitllm_plugin.modeling.families.family import Family
from gitllm_plugin.modeling.families.tiny_sizes import LLAMA_NAMES

STABLELM = Family(
    name="stablelm",
    model_types=("stablelm",),
    lora_targets=("q_proj", "k_proj", "v_proj"),
    chat_template=(
        "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|endoftext|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
    tiny_config=LLAMA_NAMES,
    variants={"parallel_residual": {"use_parallel_residual": True, "qk_layernorm": True}},
)

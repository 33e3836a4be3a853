"""Phi-3: LLaMA's shape with a fused query-key-value projection."""

from gitllm_plugin.modeling.families.family import Family
from gitllm_plugin.modeling.families.tiny_sizes import LLAMA_NAMES

PHI3 = Family(
    name="phi3",
    model_types=("phi3",),
    lora_targets=("qkv_proj",),
    chat_template=(
        "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
    tiny_config=LLAMA_NAMES,
)

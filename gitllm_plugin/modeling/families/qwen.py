"""Qwen 2, 2.5 and 3: LLaMA's shape, with biases (2) or normalised queries and keys (3)."""

from gitllm_plugin.modeling.families.family import Family
from gitllm_plugin.modeling.families.tiny_sizes import LLAMA_NAMES

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

QWEN2 = Family(
    name="qwen2",
    model_types=("qwen2",),
    lora_targets=("q_proj", "k_proj", "v_proj"),
    chat_template=CHATML,
    tiny_config=LLAMA_NAMES,
)
QWEN3 = Family(
    name="qwen3",
    model_types=("qwen3",),
    lora_targets=("q_proj", "k_proj", "v_proj"),
    chat_template=CHATML,
    tiny_config={**LLAMA_NAMES, "head_dim": 16},
)

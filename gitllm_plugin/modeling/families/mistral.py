"""Mistral: LLaMA's shape, with a sliding window in its first release."""

from gitllm_plugin.modeling.families.family import Family
from gitllm_plugin.modeling.families.llama import LLAMA
from gitllm_plugin.modeling.families.tiny_sizes import LLAMA_NAMES

MISTRAL = Family(
    name="mistral",
    model_types=("mistral",),
    lora_targets=("q_proj", "k_proj", "v_proj"),
    chat_template=LLAMA.chat_template,
    tiny_config={**LLAMA_NAMES, "sliding_window": None},
    variants={"sliding_window": {"sliding_window": 128}},
)

"""SmolLM3: LLaMA's shape, every fourth layer without positions. (SmolLM 1 and 2 are LLaMAs.)"""

from gitllm_plugin.modeling.families.family import Family
from gitllm_plugin.modeling.families.qwen import CHATML
from gitllm_plugin.modeling.families.tiny_sizes import LLAMA_NAMES

SMOLLM3 = Family(
    name="smollm3",
    model_types=("smollm3",),
    lora_targets=("q_proj", "k_proj", "v_proj"),
    chat_template=CHATML,
    tiny_config={**LLAMA_NAMES, "no_rope_layers": [1, 0]},
)

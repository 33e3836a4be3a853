"""GPT-2: learned positions, for text only, as in OPT."""

from gitllm_plugin.modeling.families.family import Family
from gitllm_plugin.modeling.families.tiny_sizes import GPT2_NAMES

GPT2 = Family(
    name="gpt2",
    model_types=("gpt2",),
    lora_targets=("c_attn",),
    positions="text",
    position_module="transformer.wpe",
    tiny_config={**GPT2_NAMES, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
)

"""MPT: ALiBi, computed by the decoder from slots."""

from gitllm_plugin.modeling.families.family import Family
from gitllm_plugin.modeling.families.qwen import CHATML

MPT = Family(
    name="mpt",
    model_types=("mpt",),
    lora_targets=("Wqkv",),
    positions="slots",
    chat_template=CHATML,
    tiny_config={"d_model": 64, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2, "max_seq_len": 256},
    variants={"heads_not_a_power_of_two": {"d_model": 48, "n_heads": 6}},
)

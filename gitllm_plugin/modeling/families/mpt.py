"""MPT: ALiBi, computed by the decoder from slots."""

from gitllm_plugin.modeling.families.family import Family

MPT = Family(
    name="mpt",
    model_types=("mpt",),
    positions="slots",
    lora_targets=("Wqkv",),
    tiny_config={"d_model": 64, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2, "max_seq_len": 256},
)

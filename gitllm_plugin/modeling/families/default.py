"""What is assumed of a decoder that no file here knows, until the self-test confirms or refutes it."""

import inspect
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedConfig

from gitllm_plugin.modeling.families.family import Family

#: Names that decoders give to query, key and value projections, separate or fused.
ATTENTION_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value", "Wqkv", "c_attn")

#: Sizes of a small copy by the common names, which transformers maps to each configuration's own.
_TINY_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rotary_dim": 8,
    "max_position_embeddings": 256,
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}


def default_family(config: PreTrainedConfig) -> Family:
    """Give facts that hold for most decoders: positions over image and text where it takes them, else from slots.

    Args:
        config: the decoder's configuration.
    """
    model_class: Any = AutoModelForCausalLM._model_mapping[type(config)]
    takes_positions = "position_ids" in inspect.signature(model_class.forward).parameters
    sizes = {name: size for name, size in _TINY_SIZES.items() if hasattr(config, name)}
    if "num_key_value_heads" in sizes and config.num_key_value_heads == config.num_attention_heads:
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    if hasattr(config, "qk_rope_head_dim"):  # latent attention has head sizes of its own, which stay
        sizes.pop("head_dim", None)
    return Family(
        name=f"{config.model_type} (default)",
        model_types=(config.model_type,),
        lora_targets=ATTENTION_PROJECTIONS,
        positions="sequence" if takes_positions else "slots",
        tiny_config=sizes,
    )

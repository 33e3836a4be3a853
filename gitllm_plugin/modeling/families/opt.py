"""OPT: learned positions, for text only; image features enter behind ``project_in``."""

from gitllm_plugin.modeling.families.family import Family

OPT = Family(
    name="opt",
    model_types=("opt",),
    lora_targets=("q_proj", "k_proj", "v_proj"),
    positions="text",
    position_module="model.decoder.embed_positions",
    tiny_config={
        "hidden_size": 64,
        "word_embed_proj_dim": 32,  # exercises project_in and project_out, as OPT-350m has them
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 128,
        "max_position_embeddings": 256,
        "dropout": 0.0,
    },
    variants={
        "without_project_in": {"word_embed_proj_dim": 64},
        "layer_norm_after": {"do_layer_norm_before": False},  # OPT-350m
    },
)

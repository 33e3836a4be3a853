"""What models are built: sizes of published ones, and tiny ones that go through the same code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from benchmarks.vision_sizes import TINY_VIT, VIT_B_16

_SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
_OPT_350M = {
    "vocab_size": 50272,
    "hidden_size": 1024,
    "word_embed_proj_dim": 512,
    "ffn_dim": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "max_position_embeddings": 2048,
    "do_layer_norm_before": False,
    "dropout": 0.0,
}
_TINY_LLAMA = {
    **_SMOLLM2,
    "vocab_size": 512,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_TINY_OPT = {
    **_OPT_350M,
    "vocab_size": 512,
    "hidden_size": 48,
    "word_embed_proj_dim": 32,
    "ffn_dim": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


@dataclass(frozen=True)
class Setup:
    """A model of random weights; dropout is off, so that losses can be compared.

    Attributes:
        name: of the language model, for people.
        text_type, text: of the language model, as transformers names it and its sizes.
        vision_type, vision: of the image encoder, ``clip_vision_model`` or ``siglip_vision_model``.
        projection: of ours: ``linear_norm`` or ``linear``.
        rank, alpha: of LoRA on query, key and value.
        dtype: of frozen weights; trained ones are float32, under autocast where these are not.
        shuffle: image tokens of a square of so many on a side become one, where the peer does that.
    """

    name: str
    text_type: str
    text: Mapping[str, Any]
    vision_type: str = "clip_vision_model"
    vision: Mapping[str, Any] = field(default_factory=lambda: dict(VIT_B_16))
    projection: str = "linear_norm"
    rank: int = 8
    alpha: int = 16
    dtype: str = "float32"
    shuffle: int = 1

    def as_json(self) -> dict[str, Any]:
        """Give plain values."""
        return asdict(self)

    @property
    def image_size(self) -> int:
        """Pixels of a side."""
        return self.vision["image_size"]

    @property
    def image_tokens(self) -> int:
        """What one image is to the language model: its patches, and CLIP's class token."""
        side = self.image_size // self.vision["patch_size"] // self.shuffle
        return side**2 + (self.vision_type == "clip_vision_model")


SMOLLM2_CLIP = Setup("SmolLM2-135M, CLIP ViT-B/16", "llama", _SMOLLM2)
SMOLLM2_SIGLIP = Setup("SmolLM2-135M, SigLIP ViT-B/16", "llama", _SMOLLM2, "siglip_vision_model")
OPT_350M_CLIP = Setup("OPT-350M, CLIP ViT-B/16", "opt", _OPT_350M)


def tiny(setup: Setup) -> Setup:
    """Give the same in a few kilobytes."""
    text = {"llama": _TINY_LLAMA, "opt": _TINY_OPT}[setup.text_type]
    return replace(setup, name=f"tiny {setup.text_type}", text=text, vision=dict(TINY_VIT))

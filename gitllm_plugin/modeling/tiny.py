"""Tiny random models with a real tokenizer, made on the spot: for tests and the ``tiny`` model types."""

from __future__ import annotations

import copy
from functools import lru_cache

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling.families import FAMILIES, Family
from gitllm_plugin.modeling.vision import ImageEncoder

_WORDS = (
    "##Instruction: Describe the picture in a few words. Answer the question about the image. "
    "##Question: what color is the shape? what shape is in the image? is there a red circle? is it not blue? "
    "##Answer: a red circle, a green square, a teal rectangle, a black triangle, yes, no, gray, yellow, brown "
) * 4

_VIT = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
_INITIAL_SCALES, _USUAL_SCALE = ("initializer_range", "init_std"), 0.02
IMAGE_ENCODERS = {
    "clip": ("clip_vision_model", _VIT),
    "siglip": ("siglip_vision_model", _VIT),
    "siglip2": ("siglip2_vision_model", {**_VIT, "num_patches": 16}),
    "dinov2": ("dinov2", _VIT),
    "dinov2_with_registers": ("dinov2_with_registers", _VIT),
    "vit": ("vit", _VIT),
    "git": ("git_vision_model", _VIT),
    "timm": ("timm_wrapper", {"architecture": "test_efficientnet", "do_pooling": False}),
}
"""Kind -> Hugging Face ``model_type`` and sizes."""


@lru_cache(maxsize=1)
def _trained_tokenizer() -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_WORDS], trainer)
    return tokenizer.to_str()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Make a byte-level BPE tokenizer of about 400 tokens, trained here on a few sentences."""
    from tokenizers import Tokenizer

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained_tokenizer()),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


def tiny_language_model(model_type: str, variant: str | None = None, seed: int = 0) -> PreTrainedModel:
    """Make a random causal LM for :func:`tiny_tokenizer`'s vocabulary, float32, in evaluation mode.

    Args:
        model_type: Hugging Face ``model_type`` of a family in the table.
        variant: a name of the family's ``variants``; None: its plain form.
        seed: of the weights.

    Raises:
        ConfigError: no such family or variant.
    """
    if model_type not in FAMILIES:
        raise ConfigError(f"no tiny model of family {model_type!r}; families: {', '.join(sorted(FAMILIES))}")
    family = FAMILIES[model_type]
    if variant is not None and variant not in family.variants:
        raise ConfigError(f"no variant {variant!r} of {model_type!r}; variants: {', '.join(family.variants) or 'none'}")
    tokenizer = tiny_tokenizer()
    config = AutoConfig.for_model(
        model_type,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **{**family.tiny_config, **family.variants.get(variant or "", {})},
    )
    return _random_model(config, seed)


def tiny_copy(config: PreTrainedConfig, family: Family) -> PreTrainedModel:
    """Make a random causal LM that differs from the one with ``config`` in its sizes and its initial weights alone.

    Of layers of different types (full, sliding, ...) one of each is kept.

    Args:
        config: of the true model; not changed.
        family: gives the sizes.
    """
    settings = copy.deepcopy(config.to_dict())
    kinds = list(dict.fromkeys(settings.get("layer_types") or []))
    # Two layers at least: what one layer hides, a second one shows.
    depth = max(2, len(kinds))
    per_layer = {name: value[:depth] for name, value in settings.items() if _is_per_layer(value, config)}
    if kinds:
        per_layer["layer_types"] = (kinds * 2)[:depth]
    sizes = {name: size for name, size in family.tiny_config.items() if name not in per_layer}
    depth_name = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    settings |= {
        "vocab_size": 128,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": None,
        "rope_parameters": _without_factor_lists(settings.get("rope_parameters")),
        # Large weights multiply what rounding does until it looks like a fault.
        **{name: _USUAL_SCALE for name in _INITIAL_SCALES if name in settings},
        **per_layer,
        **sizes,
        depth_name: depth,
    }
    # What is not set is left to the configuration's own default, but for what the family sets to None.
    copied = type(config).from_dict({k: v for k, v in settings.items() if v is not None or k in sizes})
    if config._attn_implementation in ("eager", "sdpa"):
        copied._attn_implementation = config._attn_implementation
    return _random_model(copied, 0)


def sharpen(model: PreTrainedModel) -> PreTrainedModel:
    """Enlarge matrices, in place: with random weights of the usual size, attention hardly moves a logit."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and parameter is not model.get_input_embeddings().weight and "embed" not in name:
                parameter.mul_(3)
    return model


def _is_per_layer(value: object, config: PreTrainedConfig) -> bool:
    return isinstance(value, list) and len(value) == config.num_hidden_layers


def _without_factor_lists(rope: object) -> object:
    """Drop, from rotary settings, lists of one factor a channel, which are made for the true size."""
    if not isinstance(rope, dict):
        return None
    # Some decoders have other rotary settings for layers of other types.
    if any(isinstance(value, dict) for value in rope.values()):
        return {kind: _without_factor_lists(value) for kind, value in rope.items()}
    if not any(isinstance(value, list) for value in rope.values()):
        return rope
    kept = {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}
    return {"rope_type": "default", **kept}


def _random_model(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    # The numbers that a run draws after building must not depend on how much a tiny model drew.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).eval()


def tiny_image_encoder(kind: str, layer: int = -1, seed: int = 0, final_norm: bool = False) -> ImageEncoder:
    """Make a random image encoder for images of 32 x 32 pixels, of a kind in :data:`IMAGE_ENCODERS`.

    Raises:
        ConfigError: no such kind, or layer.
    """
    if kind not in IMAGE_ENCODERS:
        raise ConfigError(f"no tiny image encoder {kind!r}; there are: {', '.join(IMAGE_ENCODERS)}")
    model_type, settings = IMAGE_ENCODERS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ImageEncoder.from_config(CONFIG_MAPPING[model_type](**settings), layer, final_norm).eval()

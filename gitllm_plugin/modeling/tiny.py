"""Tiny random models with a real tokenizer, made on the spot: for tests and the ``tiny`` model types."""

from __future__ import annotations

from functools import lru_cache

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling.families import FAMILIES
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
_IMAGE_ENCODERS = {
    "clip": ("clip_vision_model", _VIT),
    "siglip": ("siglip_vision_model", _VIT),
    "timm": ("timm_wrapper", {"architecture": "test_efficientnet", "do_pooling": False}),
}


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
    """A byte-level BPE tokenizer of about 400 tokens, trained here on a few sentences."""
    from tokenizers import Tokenizer

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained_tokenizer()),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


def tiny_language_model(family: str, seed: int = 0) -> PreTrainedModel:
    """A random causal LM of ``family`` (name or ``model_type``), eager attention, float32.

    Raises:
        ConfigError: no such family.
    """
    if family not in FAMILIES:
        raise ConfigError(f"no tiny model of family {family!r}; families: {', '.join(sorted(FAMILIES))}")
    tokenizer = tiny_tokenizer()
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **FAMILIES[family].tiny_config,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).eval()


def tiny_image_encoder(kind: str, seed: int = 0) -> ImageEncoder:
    """A random image encoder for images of 32 x 32 pixels: ``clip``, ``siglip`` or ``timm``.

    Raises:
        ConfigError: no such kind.
    """
    if kind not in _IMAGE_ENCODERS:
        raise ConfigError(f"no tiny image encoder {kind!r}; there are: {', '.join(_IMAGE_ENCODERS)}")
    model_type, settings = _IMAGE_ENCODERS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ImageEncoder.from_config(AutoConfig.for_model(model_type, **settings)).eval()

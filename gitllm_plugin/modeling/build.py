"""From names to a model: hub name, local folder, or ``tiny:<family>``."""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling.families import FAMILIES, Family
from gitllm_plugin.modeling.lora import LoraSettings, inject_lora
from gitllm_plugin.modeling.model import GitLLM
from gitllm_plugin.modeling.precision import default_device, has_fast_bf16
from gitllm_plugin.modeling.self_test import resolve_family
from gitllm_plugin.modeling.tiny import tiny_image_encoder, tiny_language_model, tiny_tokenizer
from gitllm_plugin.modeling.trainable import set_trainable
from gitllm_plugin.modeling.vision import ImageEncoder

_TINY = "tiny:"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_dtype(name: str) -> torch.dtype:
    """The dtype meant by ``name``: of :data:`DTYPES`, or ``auto``: bfloat16 where this machine is fast in it.

    Raises:
        ConfigError: no such dtype.
    """
    if name == "auto":
        return torch.bfloat16 if has_fast_bf16(default_device()) else torch.float32
    if name not in DTYPES:
        raise ConfigError(f"dtype {name!r}; allowed: auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def build_git_llm(
    language_model: str,
    image_encoder: str,
    *,
    trainable: str = "proj+lora",
    lora: LoraSettings | None = None,
    max_images: int = 1,
    dtype: str = "auto",
    self_test: bool = True,
) -> tuple[GitLLM, PreTrainedTokenizerBase]:
    """Build a GIT-LLM from pretrained parts; projection and LoRA start from torch's random state.

    Args:
        language_model: hub name or local folder of a causal LM; ``tiny:<family>`` for a random small one.
        image_encoder: hub name or local folder; ``tiny:clip``, ``tiny:siglip`` or ``tiny:timm``.
        trainable: what is trained, see :func:`~gitllm_plugin.modeling.trainable.set_trainable`.
        lora: LoRA on the language model; None: none.
        max_images: most images of one text.
        dtype: of frozen weights, see :func:`resolve_dtype`; trained ones are float32.
        self_test: whether a tiny copy of the language model is tested first, see
            :func:`~gitllm_plugin.modeling.self_test.resolve_family`.

    Returns:
        The model, in evaluation mode on the CPU, and the language model's tokenizer.

    Raises:
        ConfigError: a name that cannot be loaded, a language model that fails the self-test, a setting that
            matches nothing.
    """
    frozen_dtype = resolve_dtype(dtype)
    decoder, tokenizer, family = _load_language_model(language_model, frozen_dtype, self_test)
    encoder = _load_image_encoder(image_encoder, frozen_dtype)
    model = GitLLM(encoder, decoder, max_images=max_images, family=family)
    if lora is not None:
        inject_lora(decoder, lora, model.family.lora_targets)
    set_trainable(model, trainable)
    return model.eval(), tokenizer


def _load_language_model(
    name: str, dtype: torch.dtype, self_test: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Family]:
    if name.startswith(_TINY):
        decoder = tiny_language_model(name.removeprefix(_TINY))
        return cast(Any, decoder).to(dtype), tiny_tokenizer(), FAMILIES[decoder.config.model_type]
    tokenizer = _load(name, "language model", AutoTokenizer.from_pretrained)
    config = _load(name, "language model", AutoConfig.from_pretrained)
    family = resolve_family(config, self_test)  # before gigabytes are read
    return _load(name, "language model", AutoModelForCausalLM.from_pretrained, dtype=dtype), tokenizer, family


def _load_image_encoder(name: str, dtype: torch.dtype) -> ImageEncoder:
    if name.startswith(_TINY):
        encoder = tiny_image_encoder(name.removeprefix(_TINY))
        return encoder.to(dtype)
    return _load(name, "image encoder", ImageEncoder.from_pretrained, dtype=dtype)


def _load(name: str, what: str, loader: Any, **kwargs: Any) -> Any:
    try:
        return loader(name, **kwargs)
    except OSError as error:
        raise ConfigError(
            f"{what} {name!r} cannot be loaded: it is neither a local folder with a model in it nor a name that the "
            f"model hub answers to from here ({str(error).splitlines()[0]})"
        ) from error

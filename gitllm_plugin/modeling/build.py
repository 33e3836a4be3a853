"""From names to a model: hub name, local folder, or ``tiny:<family>``."""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from gitllm_plugin.common.device import default_device, has_fast_bf16
from gitllm_plugin.config import changed
from gitllm_plugin.config.model import BuildSettings
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling.families import FAMILIES, Family
from gitllm_plugin.modeling.fused import use_fused_kernels
from gitllm_plugin.modeling.lora import inject_lora
from gitllm_plugin.modeling.model import GitLLM
from gitllm_plugin.modeling.self_test import resolve_family
from gitllm_plugin.modeling.tiny import tiny_image_encoder, tiny_language_model, tiny_tokenizer
from gitllm_plugin.modeling.trainable import names_of_part, set_trainable, untie_head
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
    language_model: str, image_encoder: str, settings: BuildSettings | None = None, **changes: Any
) -> tuple[GitLLM, PreTrainedTokenizerBase]:
    """Build a GIT-LLM from pretrained parts; projection and LoRA start from torch's random state.

    Args:
        language_model: hub name or local folder of a causal LM; ``tiny:<family>`` for a random small one.
        image_encoder: hub name or local folder; ``tiny:<kind>`` for a random small one.
        settings: how; None: the defaults.
        **changes: fields of :class:`BuildSettings`, in the place of those in ``settings``.

    Returns:
        The model, in evaluation mode on the CPU, and the language model's tokenizer.

    Raises:
        ConfigError: a name that cannot be loaded, a language model that fails the self-test, a setting that
            matches nothing, or 4 bits without a GPU.
    """
    settings = changed(settings or BuildSettings(), **changes)
    frozen_dtype = resolve_dtype(settings.dtype)
    decoder, tokenizer, family = _load_language_model(language_model, frozen_dtype, settings)
    encoder = _load_image_encoder(image_encoder, frozen_dtype, settings.vision_layer)
    model = GitLLM(encoder, decoder, max_images=settings.max_images, family=family)
    model.sources = {"language_model": language_model, "image_encoder": image_encoder}
    return prepare(model, settings), tokenizer


def prepare(model: GitLLM, settings: BuildSettings) -> GitLLM:
    """Add LoRA (where there is none yet) and choose what is trained; gives the model in evaluation mode."""
    if settings.fused_kernels:
        use_fused_kernels(model.language_model)
    if settings.untie:
        untie_head(model)
    if settings.lora is not None and not names_of_part(model, "lora"):
        inject_lora(model.language_model, settings.lora, model.family.lora_targets)
    set_trainable(model, settings.trainable)
    if settings.gradient_checkpointing:
        enable_gradient_checkpointing(model)
    return model.eval()


def find_chat_template(tokenizer: PreTrainedTokenizerBase, family: Family) -> str:
    """The conversation template of a language model: its tokenizer's, else the family's.

    Raises:
        ConfigError: neither has one.
    """
    template = tokenizer.chat_template or family.chat_template
    if not isinstance(template, str):
        raise ConfigError(
            f"chat_template: neither the tokenizer nor the family {family.name!r} has one; leave it out, or take a "
            "language model that was tuned on conversations"
        )
    return template


def enable_gradient_checkpointing(model: GitLLM) -> None:
    """Let the language model, and the encoder where it is trained, compute activations twice and keep few."""
    towers = [model.language_model] if model.image_encoder.frozen else [model.language_model, model.image_encoder.tower]
    for tower in towers:
        if not tower.supports_gradient_checkpointing:
            raise ConfigError(
                f"gradient_checkpointing: {type(tower).__name__} of transformers has none; leave it out or do not "
                "train that part"
            )
        tower.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def _load_language_model(
    name: str, dtype: torch.dtype, settings: BuildSettings
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Family]:
    quantization = _four_bits(dtype) if settings.load_in_4bit else {}
    if name.startswith(_TINY):
        decoder = tiny_language_model(name.removeprefix(_TINY))
        return cast(Any, decoder).to(dtype), tiny_tokenizer(), FAMILIES[decoder.config.model_type]
    tokenizer = load_by_name(name, "language model", AutoTokenizer.from_pretrained)
    config = load_by_name(name, "language model", AutoConfig.from_pretrained)
    family = resolve_family(config, settings.self_test)  # before gigabytes are read
    decoder = load_by_name(name, "language model", AutoModelForCausalLM.from_pretrained, dtype=dtype, **quantization)
    return decoder, tokenizer, family


def _four_bits(dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` for 4-bit weights.

    Raises:
        ConfigError: no CUDA, or bitsandbytes is not installed.
    """
    from importlib.util import find_spec

    if not torch.cuda.is_available():
        raise ConfigError("load_in_4bit needs a CUDA GPU, and torch finds none; use dtype: bfloat16 instead")
    if find_spec("bitsandbytes") is None:
        raise ConfigError("load_in_4bit needs bitsandbytes: pip install bitsandbytes")
    from transformers import BitsAndBytesConfig

    compute = torch.bfloat16 if dtype == torch.float32 else dtype
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
    )
    return {"quantization_config": config, "device_map": {"": torch.cuda.current_device()}}


def _load_image_encoder(name: str, dtype: torch.dtype, layer: int) -> ImageEncoder:
    if name.startswith(_TINY):
        return tiny_image_encoder(name.removeprefix(_TINY), layer).to(dtype)
    return load_by_name(name, "image encoder", ImageEncoder.from_pretrained, layer=layer, dtype=dtype)


def load_by_name(name: str, what: str, loader: Any, **kwargs: Any) -> Any:
    """What ``loader(name, **kwargs)`` gives.

    Raises:
        ConfigError: ``name`` is neither a folder nor a model that can be fetched, or is one of an unknown kind.
    """
    try:
        return loader(name, **kwargs)
    except ConfigError:
        raise
    except ValueError as error:  # transformers' word for a model_type that it does not have
        raise ConfigError(f"{what} {name!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    except OSError as error:
        raise ConfigError(
            f"{what} {name!r} cannot be loaded: it is neither a local folder with a model in it nor a name that the "
            f"model hub answers to from here ({str(error).splitlines()[0]})"
        ) from error

"""From names to a model: hub name, local folder, or ``tiny:<family>``."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from gitllm_plugin.config import changed
from gitllm_plugin.config.model import BuildSettings, GitLLMSettings, ImagePlaces, loss_fault
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling.description import MADE_OF, read_description
from gitllm_plugin.modeling.families import FAMILIES, Family
from gitllm_plugin.modeling.folder import (
    BASES,
    LANGUAGE_MODEL,
    LoadedFolder,
    check_folder,
    only_dtype,
    read_folder,
    save_folder,
    stored_dtypes,
)
from gitllm_plugin.modeling.lora import inject_lora, merge_lora
from gitllm_plugin.modeling.model import GitLLM
from gitllm_plugin.modeling.pretrained import (
    is_tokenizer_at,
    load_config,
    load_model,
    load_tokenizer,
    resolve_dtype,
)
from gitllm_plugin.modeling.projection import KINDS
from gitllm_plugin.modeling.self_test import confirm_family
from gitllm_plugin.modeling.tiny import tiny_image_encoder, tiny_language_model, tiny_tokenizer
from gitllm_plugin.modeling.tokens import TextEncoder
from gitllm_plugin.modeling.trainable import names_of_module, set_trainable, untie_head
from gitllm_plugin.modeling.vision import ImageEncoder
from gitllm_plugin.modeling.vocabulary import end_tokens, fit_tokenizer
from gitllm_plugin.modeling.weightless import weights_left_out

_TINY = "tiny:"
_WHAT = "language model"


def build_git_llm(
    language_model: str, image_encoder: str, settings: BuildSettings | None = None, **changes: Any
) -> tuple[GitLLM, PreTrainedTokenizerBase]:
    """Build a GIT-LLM of pretrained models; projection and LoRA start from torch's random state.

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
    encoder = _load_image_encoder(image_encoder, frozen_dtype, settings)
    made = {name: getattr(settings, name) for name in MADE_OF}
    model = GitLLM(encoder, decoder, family=family, **made)
    model.sources = {"language_model": language_model, "image_encoder": image_encoder}
    return prepare(model, settings), tokenizer


def load_folder(folder: str | Path, dtype: str = "auto", self_test: bool = True) -> LoadedFolder[GitLLM]:
    """Read what :func:`~gitllm_plugin.modeling.folder.save_folder` wrote.

    Args:
        folder: the folder.
        dtype: of language model and image encoder, see :func:`~gitllm_plugin.modeling.pretrained.resolve_dtype`.
        self_test: see :func:`resolve_family`.

    Raises:
        ConfigError: not such a folder, one of its bases is missing or does not fit, or its adapter was trained on
            another language model.
    """
    return read_folder(folder, GitLLM, dtype, self_test)


def build_from_folder(folder: str | Path, settings: BuildSettings) -> tuple[GitLLM, PreTrainedTokenizerBase]:
    """Prepare a folder's model for training, as :func:`build_git_llm` prepares one.

    The folder says how many images and which hidden layer of the encoder are read, and brings its own LoRA where
    it has some.

    Raises:
        ConfigError: see :func:`load_folder`; or there is no tokenizer, or a setting does not go with a folder.
    """
    if settings.load_in_4bit:
        raise ConfigError("load_in_4bit goes with language_model and image_encoder, not with a folder")
    loaded = load_folder(folder, settings.dtype, settings.self_test)
    if loaded.tokenizer is None:
        raise ConfigError(f"{folder} has no tokenizer in {LANGUAGE_MODEL}/; save the language model's there")
    return prepare(loaded.model, settings), loaded.tokenizer


def build_with_texts(settings: GitLLMSettings) -> tuple[GitLLM, TextEncoder]:
    """Build what the ``model`` node of a configuration describes, and what encodes its texts.

    Raises:
        ConfigError: see :func:`build_git_llm`, :func:`build_from_folder` and :func:`make_text_encoder`.
    """
    chat, places = settings.chat_template, settings.image_places
    if settings.folder is not None:
        model, tokenizer = build_from_folder(settings.folder, settings)
        own = read_description(Path(settings.folder).expanduser())["settings"]
        chat = own.get("chat_template") if chat is None else chat
        places = places or own.get("image_places")
    else:
        names = cast(str, settings.language_model), cast(str, settings.image_encoder)
        model, tokenizer = build_git_llm(*names, settings)
    if fault := loss_fault(model.decoder.attention, settings.loss_on):
        raise ConfigError(f"model{fault}")
    text_encoder = make_text_encoder(
        model.language_model,
        tokenizer,
        conversation=model.decoder.family if chat else None,
        loss_on=settings.loss_on,
        image_places=places or "front",
    )
    return model, text_encoder


def merge_folder(source: str | Path, target: str | Path, dtype: str | None = None) -> None:
    """Write a folder's model with its adapter added to the language model's weights.

    Sums are made in float32 and rounded once, as by ``gitllm export --merge``. The model is held in the dtype that all
    its weights are stored in; in float32 where there are several, or where ``dtype`` is another.

    Args:
        source: a folder with an adapter.
        target: the folder to make; it holds all weights.
        dtype: that language model and image encoder are written in, see
            :func:`~gitllm_plugin.modeling.pretrained.resolve_dtype`; None: each weight as it was.

    Raises:
        ConfigError: not such a folder, no adapter in it, or the target is in use.
    """
    check_folder(source)
    written = stored_dtypes(source) if dtype is None else dict.fromkeys(BASES, resolve_dtype(dtype))
    only = only_dtype(source)
    # Float32 holds every stored weight exactly. The stored dtype does in half the memory, and gives the same sums where
    # they are rounded to it: each is made in float32 by itself.
    exact = only if set(written.values()) == {only} else torch.float32
    loaded = load_folder(source, dtype=str(exact).removeprefix("torch."))
    rounded = [
        (parameter, to)
        for base, to in written.items()
        for name, parameter in loaded.model.get_submodule(base).named_parameters()
        # Weights that were trained are float32 beside frozen ones in bfloat16; they are the ones that do not fit.
        if ".lora_" not in name and (dtype is not None or _fits(parameter, to))
    ]
    try:
        merge_lora(loaded.model.language_model)
    except ConfigError as error:
        raise ConfigError(f"{source} has no adapter to merge") from error
    for parameter, to in rounded:
        parameter.data = parameter.data.to(to)
    save_folder(
        loaded.model,
        target,
        tokenizer=loaded.tokenizer,
        image_processor=loaded.image_processor,
        settings=loaded.settings,
    )


def resolve_family(config: PreTrainedConfig, self_test: bool = True) -> Family:
    """Find the facts about a decoder, confirmed on a tiny copy of it.

    Args:
        config: the decoder's configuration.
        self_test: whether to ask the copy; without it an unknown decoder is taken at its word.

    Raises:
        ConfigError: the copy lacks a property, or cannot be made; the message says which.
    """
    return confirm_family(config, GitLLM, self_test)


def prepare(model: GitLLM, settings: BuildSettings) -> GitLLM:
    """Add LoRA (where there is none yet) and choose what is trained, in place; gives it in evaluation mode.

    Raises:
        ConfigError: a setting that matches nothing in this model, or that it cannot have.
    """
    if settings.fused_kernels:
        use_fused_kernels(model.language_model)
    # Before anything is chosen as trained: what was one weight are two then.
    if settings.untie:
        untie_head(model.language_model)
    if settings.lora is not None and not names_of_module(model, "lora"):
        inject_lora(model.language_model, settings.lora, model.decoder.family.lora_targets)
        model.untrained.add("lora")
    set_trainable(model, settings.trainable)
    if settings.gradient_checkpointing:
        enable_gradient_checkpointing(model)
    return model.eval()


def find_chat_template(tokenizer: PreTrainedTokenizerBase, family: Family) -> str:
    """Find the conversation template of a language model: its tokenizer's, else the family's.

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


def make_text_encoder(
    language_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    conversation: Family | None = None,
    loss_on: Literal["answer", "all"] = "answer",
    image_places: ImagePlaces = "front",
) -> TextEncoder:
    """Make what turns texts into a language model's ids; every way to a model takes this one.

    Args:
        language_model: whose generation config may name end tokens that its tokenizer does not.
        tokenizer: the language model's own.
        conversation: its family, where prompts are the user's turns in a conversation, see
            :func:`find_chat_template`; None: they are not.
        loss_on, image_places: see :class:`~gitllm_plugin.modeling.tokens.TextEncoder`.

    Raises:
        ConfigError: there is no end token, or no conversation template.
    """
    return TextEncoder(
        tokenizer,
        loss_on=loss_on,
        image_places=image_places,
        chat_template=None if conversation is None else find_chat_template(tokenizer, conversation),
        end_tokens=tuple(end_tokens(language_model)),
    )


def enable_gradient_checkpointing(model: GitLLM, on: bool = True) -> None:
    """Let the language model, and the encoder where it is trained, compute activations twice and keep few.

    Args:
        model: changed in place.
        on: whether they do so; else they keep all of them.

    Raises:
        ConfigError: one of them is of a class that cannot.
    """
    towers = [model.language_model] if model.image_encoder.frozen else [model.language_model, model.image_encoder.tower]
    for tower in towers:
        if not tower.supports_gradient_checkpointing:
            if not on:
                continue
            raise ConfigError(
                f"gradient_checkpointing: {type(tower).__name__} of transformers has none; leave it out or do not "
                "train that module"
            )
        # transformers 5.20 knows the older of the two names alone; later ones warn of it.
        name = "activation" if hasattr(tower, "activation_checkpointing_enable") else "gradient"
        if on:
            # The older, reentrant kind gives no gradients where no input of a layer wants any: with frozen embeddings.
            kwargs = {f"{name}_checkpointing_kwargs": {"use_reentrant": False}}
            getattr(tower, f"{name}_checkpointing_enable")(**kwargs)
        else:
            getattr(tower, f"{name}_checkpointing_disable")()


def _load_language_model(
    name: str, dtype: torch.dtype, settings: BuildSettings
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Family]:
    quantization = _four_bits(dtype) if settings.load_in_4bit else {}
    if name.startswith(_TINY):
        decoder = tiny_language_model(name.removeprefix(_TINY))
        return cast(Any, decoder).to(dtype), tiny_tokenizer(), FAMILIES[decoder.config.model_type]
    # The small files first, before gigabytes are read.
    config = load_config(name, _WHAT)
    without_words = weights_left_out() and Path(name).is_dir() and not is_tokenizer_at(Path(name))
    tokenizer = tiny_tokenizer() if without_words else load_tokenizer(name, _WHAT)
    family = resolve_family(config, settings.self_test)
    decoder = load_model(name, _WHAT, AutoModelForCausalLM, dtype=dtype, **quantization)
    if without_words:
        logging.warning("%s has no tokenizer: one of 400 words counts its tokens, which are more than its own.", name)
    else:
        fit_tokenizer(tokenizer, decoder, name)
    return decoder, tokenizer, family


def _four_bits(dtype: torch.dtype) -> dict[str, Any]:
    """Make arguments of ``from_pretrained`` for 4-bit weights.

    Raises:
        ConfigError: no CUDA, or bitsandbytes is not installed.
    """
    if not torch.cuda.is_available():
        raise ConfigError("load_in_4bit needs a CUDA GPU, and torch finds none; use dtype: bfloat16 instead")
    if find_spec("bitsandbytes") is None:
        raise ConfigError("load_in_4bit needs bitsandbytes: pip install bitsandbytes")
    from transformers import BitsAndBytesConfig

    # Weights are unpacked into this dtype for every product, in float32 at twice the size.
    compute = torch.bfloat16 if dtype == torch.float32 else dtype
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
    )
    return {"quantization_config": config, "device_map": {"": torch.cuda.current_device()}}


def _load_image_encoder(name: str, dtype: torch.dtype, settings: BuildSettings) -> ImageEncoder:
    layer, final_norm = settings.vision_layer, not KINDS[settings.projection].has_norm
    if name.startswith(_TINY):
        return tiny_image_encoder(name.removeprefix(_TINY), layer, final_norm=final_norm).to(dtype)
    return ImageEncoder.from_pretrained(name, layer=layer, final_norm=final_norm, dtype=dtype)


def use_fused_kernels(language_model: PreTrainedModel) -> None:
    """Exchange a decoder's norms, rotary positions and gated activations for Liger's kernels, in place.

    The loss stays ours: its head runs on supervised tokens alone already. Liger also exchanges the functions and
    classes of the decoder's module, so other decoders of the family that this process makes later have them too.

    Raises:
        ConfigError: no CUDA, Liger is not installed, or it has no kernels for this type of decoder.
    """
    if not torch.cuda.is_available():
        raise ConfigError("fused_kernels needs a CUDA GPU, and torch finds none; leave it out")
    if find_spec("liger_kernel") is None:
        raise ConfigError("fused_kernels needs Liger's kernels: pip install liger-kernel")
    from liger_kernel.transformers.monkey_patch import (  # pyright: ignore[reportMissingImports]
        MODEL_TYPE_TO_APPLY_LIGER_FN,
        _apply_liger_kernel_to_instance,
    )

    model_type = language_model.config.model_type
    if model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise ConfigError(
            f"fused_kernels: Liger has none for a language model of type {model_type!r}; leave it out. It has them for "
            f"{', '.join(sorted(MODEL_TYPE_TO_APPLY_LIGER_FN))}"
        )
    # Their fused loss would compute the head on all tokens.
    _apply_liger_kernel_to_instance(model=language_model, cross_entropy=False, fused_linear_cross_entropy=False)


def _fits(parameter: Tensor, dtype: torch.dtype) -> bool:
    """Tell whether a weight loses nothing in ``dtype``."""
    return torch.equal(parameter, parameter.to(dtype).to(parameter.dtype))

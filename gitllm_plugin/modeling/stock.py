"""A model as transformers' own class: PaliGemma's is GIT-LLM with a projection that has no norm behind it.

Image tokens attend to each other, text is causal behind them, positions run over both. Which text and vision models the
class computes as they are is not listed here: a tiny copy of the model is asked, as in the self-test.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration, PreTrainedModel

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling.families import Family
from gitllm_plugin.modeling.folder import open_weights
from gitllm_plugin.modeling.lora import merge_lora
from gitllm_plugin.modeling.model import GitLLM
from gitllm_plugin.modeling.tiny import IMAGE_ENCODERS, sharpen, tiny_copy, tiny_image_encoder
from gitllm_plugin.modeling.trainable import names_of_module

_TOLERANCE = 1e-5
"""Of the largest logit: float32 sums in another order differ by a tenth of it."""


def save_stock(model: GitLLM, folder: Path) -> None:
    """Write a model's weights and configuration as transformers' class has them; LoRA is merged, in place.

    Every weight keeps its dtype. The configuration says the language model's where it has one, else float32, which is
    what ``from_pretrained`` makes of all.

    Args:
        model: on the CPU.
        folder: exists.

    Raises:
        ConfigError: the class does not compute this model; the message says why.
    """
    check_stock(model)
    if names_of_module(model, "lora"):
        merge_lora(model.language_model)
    # Without weights of its own, of which a large model has no room for two.
    stock = _convert(model, torch.device("meta"))
    stock.save_pretrained(folder)
    dtypes = {parameter.dtype for parameter in model.language_model.parameters()}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    for config in (stock.config, stock.config.text_config, stock.config.vision_config):
        cast(Any, config).dtype = dtype
    stock.config.save_pretrained(folder)
    open_weights(folder, like=folder / "config.json")


def check_stock(model: GitLLM) -> None:
    """Refuse a model that transformers' class does not compute.

    Raises:
        ConfigError: the reason.
    """
    decoder, tower = model.language_model, model.image_encoder.tower
    if model.projection.kind != "linear":
        raise _refusal(
            f"its projection is {model.projection.kind}, for which that class has no place: train with "
            "model.projection=linear"
        )
    if model.decoder.attention != "git":
        raise _refusal(
            f"it reads by model.attention={model.decoder.attention}; only models of attention=git are written"
        )
    if model.max_images > 1:
        raise _refusal(
            f"it reads up to {model.max_images} images, with temporal embeddings: train with model.max_images=1"
        )
    if model.tile_marks:
        raise _refusal("it has marks of tiles: train with model.tile_marks=false")
    kind, positions = decoder.config.model_type, model.decoder.positions
    if positions == "text":
        raise _refusal(
            f"positions of a language model of type {kind!r} are learned and belong to text alone; that class counts "
            "them over image and text"
        )
    if getattr(decoder, "is_quantized", False):
        raise _refusal("its language model is held in 4 bits: export it with model.load_in_4bit=false")
    if getattr(decoder.get_output_embeddings(), "bias", None) is not None:
        raise _refusal(f"the head of a language model of type {kind!r} has a bias, that class's has none")
    tiny_kind = _tiny_kind(tower)
    if tiny_kind is None or model.image_encoder.patchifies:
        raise _refusal(f"that class cannot read an image encoder of type {tower.config.model_type!r}")
    _check_copy(decoder, model.decoder.family, tiny_kind)


def _refusal(reason: str) -> ConfigError:
    return ConfigError(f"this model cannot be written as a class of transformers' own (PaliGemma's): {reason}")


def _tiny_kind(tower: PreTrainedModel) -> str | None:
    return next((kind for kind, (name, _) in IMAGE_ENCODERS.items() if name == tower.config.model_type), None)


@torch.no_grad()
def _check_copy(decoder: PreTrainedModel, family: Family, kind: str) -> None:
    """Compare the class with a tiny copy of the model, sliding attention and padding included."""
    what = f"a language model of type {decoder.config.model_type!r} with an image encoder of kind {kind!r}"
    tiny = GitLLM(
        tiny_image_encoder(kind, final_norm=True),
        sharpen(tiny_copy(decoder.config, family)),
        family=family,
        projection="linear",
    ).eval()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, tiny.language_model.config.vocab_size, (2, 12), generator=generator)
    pixels = torch.randn(2, 3, 32, 32, generator=generator)
    wanted = tiny(ids, None, pixels).logits
    try:
        stock = _convert(tiny)
        inputs = stock_inputs(stock, ids, tiny.image_encoder.num_tokens(32, 32))
        found = stock(pixel_values=pixels, **inputs).logits[:, -ids.shape[1] :]
    except Exception as error:  # noqa: BLE001 - classes fail in their own ways on what they are not made for
        raise _refusal(f"it fails on {what} ({type(error).__name__}: {str(error)[:200]})") from error
    difference = float((found - wanted).abs().max() / wanted.abs().max())
    if not difference <= _TOLERANCE:
        raise _refusal(f"of {what} it computes other logits, by {difference:.0e} of the largest")


def stock_inputs(stock: PreTrainedModel, ids: Tensor, num_image_tokens: int) -> dict[str, Tensor]:
    """Put the image's tokens in front of texts.

    Args:
        stock: a model of transformers' class.
        ids: long ``[N, T]`` without padding.
        num_image_tokens: P, of an image.

    Returns:
        ``input_ids``, ``attention_mask`` and ``token_type_ids``, each ``[N, P + T]``; the last is 0 on the image.
    """
    image = ids.new_full((len(ids), num_image_tokens), stock.config.image_token_id)
    return {
        "input_ids": torch.cat([image, ids], 1),
        "attention_mask": torch.cat([torch.ones_like(image), torch.ones_like(ids)], 1),
        "token_type_ids": torch.cat([torch.zeros_like(image), torch.ones_like(ids)], 1),
    }


def _convert(model: GitLLM, device: torch.device | None = None) -> PaliGemmaForConditionalGeneration:
    """Make transformers' model; on the device ``meta``, of the model's own weights."""
    decoder, tower = model.language_model, model.image_encoder.tower
    head = cast(nn.Linear, decoder.get_output_embeddings())
    config = _config(decoder, tower)
    with torch.device(device or "cpu"):
        stock = PaliGemmaForConditionalGeneration(config).eval()
    parts = {
        "model.language_model": decoder.base_model,
        "model.vision_tower": tower,
        "model.multi_modal_projector.linear": model.projection[0],
    }
    state = {f"{place}.{name}": value for place, part in parts.items() for name, value in part.state_dict().items()}
    # A head that is tied by another name than the class knows is written beside its embedding.
    state["lm_head.weight"] = head.weight.detach() if config.tie_word_embeddings else head.weight.detach().clone()
    stock.load_state_dict(state, assign=device is not None)
    return stock


def _config(decoder: PreTrainedModel, tower: PreTrainedModel) -> PaliGemmaConfig:
    text, vision = copy.deepcopy(decoder.config), copy.deepcopy(tower.config)
    # Where they were read from is of this machine; of parts, transformers writes it.
    text.name_or_path = vision.name_or_path = ""
    # The prompt is causal: PaliGemma's own is not.
    text.use_bidirectional_attention = False
    if getattr(text, "sliding_window", None) is not None and "sliding_attention" not in (
        getattr(text, "layer_types", None) or ()
    ):
        # No row is longer than the window, see `Decoder.longest_row`; the class makes two masks where there is one.
        text.sliding_window = None
    embeddings = decoder.get_input_embeddings()
    has_class_name = getattr(decoder.base_model, "embed_tokens", None) is embeddings
    return PaliGemmaConfig(
        vision_config=vision,
        text_config=text,
        projection_dim=text.hidden_size,
        hidden_size=text.hidden_size,
        vocab_size=text.vocab_size,
        # One behind the vocabulary, so that no text has it.
        image_token_index=text.vocab_size,
        tie_word_embeddings=bool(text.tie_word_embeddings) and has_class_name,
    )

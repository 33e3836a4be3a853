"""Repairs of LAVIS's own models, which were written against transformers 4.26: nothing of transformers is changed.

Each function names what transformers, numpy or LAVIS itself lacks, and can go when LAVIS is fixed. What 4.26 still has
stays as it is.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

from gitllm_plugin.host import old_transformers
from gitllm_plugin.host.patching import Repairs, apply_all

_MED = "lavis.models.med"
_NLVR = "lavis.models.blip_models.nlvr_encoder"
_QFORMER = "lavis.models.blip2_models.Qformer"
_OPT = "lavis.models.blip2_models.modeling_opt"
_T5 = "lavis.models.blip2_models.modeling_t5"
_LLAMA = "lavis.models.blip2_models.modeling_llama"
_BERTS = tuple(f"{module}:BertPreTrainedModel" for module in (_MED, _NLVR, _QFORMER))
_BASES = (*_BERTS, f"{_OPT}:OPTPreTrainedModel", f"{_T5}:T5PreTrainedModel")
_BERT_TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
_T5_TIED = {f"{part}.weight": "shared.weight" for part in ("encoder.embed_tokens", "decoder.embed_tokens")}
# Classes with a head: which of their weights are one.
_TIED = {
    f"{_MED}:BertForMaskedLM": _BERT_TIED,
    f"{_MED}:BertLMHeadModel": _BERT_TIED,
    f"{_QFORMER}:BertForMaskedLM": _BERT_TIED,
    f"{_QFORMER}:BertLMHeadModel": _BERT_TIED,
    f"{_OPT}:OPTForCausalLM": {"lm_head.weight": "model.decoder.embed_tokens.weight"},
    f"{_T5}:T5ForConditionalGeneration": {**_T5_TIED, "lm_head.weight": "shared.weight"},
}
_WITH_IMAGES = (f"{_MED}:BertLMHeadModel", f"{_QFORMER}:BertLMHeadModel", f"{_OPT}:OPTForCausalLM")
_WITH_PAST = (*_WITH_IMAGES, f"{_T5}:T5ForConditionalGeneration")
_OF_MAIN = importlib.util.find_spec(_LLAMA) is not None
_GENERATING = (*_WITH_PAST, f"{_LLAMA}:LlamaForCausalLM") if _OF_MAIN else _WITH_PAST
_REPAIRS = Repairs()
_repair = _REPAIRS.of


def repair_models() -> None:
    """Apply all repairs of this file; LAVIS must have been imported. Calling it again does nothing."""
    apply_all(_REPAIRS)


def _once(function: Callable[[], None]) -> Callable[[], None]:
    """Make a function that can be called again a repair."""
    _REPAIRS.append(function)
    return function


def _class(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


# ------------------------------------------------------------------------------------- what PreTrainedModel has changed


@_once
def supply_masks() -> None:
    """``get_head_mask``, ``invert_attention_mask`` and ``get_extended_attention_mask`` are gone."""
    for place in _BASES:
        for name in ("get_head_mask", "invert_attention_mask", "get_extended_attention_mask"):
            if not hasattr(_class(place), name):
                setattr(_class(place), name, getattr(old_transformers, name))


@_once
def tie_weights_by_name() -> None:
    """``_tied_weights_keys`` says which weights are one; without, LAVIS's heads are random numbers of their own."""
    for place, tied in _TIED.items():
        if hasattr(_class(place), "get_expanded_tied_weights_keys"):
            _class(place)._tied_weights_keys = tied


@_repair(*(f"{base}.init_weights" for base in _BASES))
def take_note_of_weights(original: Any) -> Any:
    """LAVIS's models call ``init_weights`` at their end where ``post_init`` is wanted, which sets attributes too."""

    @functools.wraps(original)
    def init_weights(self):
        if hasattr(self, "get_expanded_tied_weights_keys") and not hasattr(self, "all_tied_weights_keys"):
            self.post_init()  # comes back here
        else:
            original(self)

    return init_weights


@_repair(*(f"{base}._init_weights" for base in _BERTS))
def count_positions(original: Any) -> Any:
    """``from_pretrained`` makes models without memory first: what ``__init__`` wrote into a buffer is lost.

    The numbers of the positions are such a buffer of LAVIS's, and were whatever lay in memory.
    """
    import torch

    @functools.wraps(original)
    def init_weights(self, module):
        original(self, module)
        positions = getattr(module, "position_ids", None)
        if isinstance(positions, torch.Tensor):
            with torch.no_grad():
                positions.copy_(torch.arange(positions.shape[-1]).expand_as(positions))

    return init_weights


if _OF_MAIN:

    @_REPAIRS.of(f"{_LLAMA}:LlamaPreTrainedModel._init_weights")
    def compute_angles(original: Any) -> Any:
        """Llama's angles are such buffers too."""

        @functools.wraps(original)
        def init_weights(self, module):
            original(self, module)
            if isinstance(module, _class(f"{_LLAMA}:LlamaRotaryEmbedding")):
                made = type(module)(2 * module.inv_freq.shape[0], module.max_seq_len_cached)
                for name, buffer in made.named_buffers():
                    getattr(module, name).copy_(buffer)

        return init_weights


# ------------------------------------------------------------------------------------------------------------- generate


@_once
def supply_generate() -> None:
    """``PreTrainedModel`` no longer has ``generate``: it is a class of its own, ``GenerationMixin``."""
    from transformers import GenerationMixin

    for place in _GENERATING:
        owner = _class(place)
        if not issubclass(owner, GenerationMixin):
            owner.__bases__ = (*owner.__bases__, GenerationMixin)


@_repair(*(f"{place}._supports_default_dynamic_cache" for place in _GENERATING))
def keep_caches_of_tuples(original: Any) -> Any:
    """``generate`` hands out a ``DynamicCache``; LAVIS's models take and give tuples of tensors."""
    return classmethod(lambda cls: False)


@_repair(*(f"{place}.prepare_inputs_for_generation" for place in _WITH_PAST))
def hand_on_the_cache(original: Any) -> Any:
    """``generate`` calls the cache ``past_key_values``; LAVIS looks for ``past``, as it was called before 4.27.

    Without, every step reads all tokens again, and BLIP-2's OPT the image too.
    """

    @functools.wraps(original)
    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, **kwargs):
        if past_key_values is not None:
            kwargs["past"] = past_key_values
        return original(self, input_ids, **kwargs)

    return prepare_inputs_for_generation


@_repair(f"{_OPT}:OPTForCausalLM.prepare_inputs_for_generation")
def count_the_image_in_the_mask(original: Any) -> Any:
    """``generate`` drops a mask that is all ones; LAVIS makes another, without the image's vectors."""

    @functools.wraps(original)
    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, query_embeds=None, **kwargs):
        if attention_mask is None:
            images = 0 if query_embeds is None else query_embeds.shape[1]
            attention_mask = input_ids.new_ones(input_ids.shape[0], images + input_ids.shape[1])
        return original(self, input_ids, attention_mask=attention_mask, query_embeds=query_embeds, **kwargs)

    return prepare_inputs_for_generation


@_repair(*([f"{_LLAMA}:LlamaForCausalLM.prepare_inputs_for_generation"] if _OF_MAIN else []))
def count_positions_by_the_mask(original: Any) -> Any:
    """``generate`` hands positions of all tokens; LAVIS's Llama takes them for those of the last, and can count."""

    @functools.wraps(original)
    def prepare_inputs_for_generation(self, input_ids, position_ids=None, **kwargs):
        return original(self, input_ids, **kwargs)

    return prepare_inputs_for_generation


@_repair(*(["lavis.models.blip2_models.blip2_opt:OPTForCausalLM", f"{_LLAMA}:LlamaForCausalLM"] if _OF_MAIN else []))
def count_what_is_generated(original: Any) -> Any:
    """``max_length`` counts the prompt's vectors too, so that ten tokens of an answer are less than none.

    Git main hands OPT and Vicuna a prompt of vectors, where transformers counted what is generated.
    """
    if not hasattr(original, "_prepare_generated_length"):
        return original

    def prepare_generated_length(self, *args, **kwargs):
        return original._prepare_generated_length(self, *args, **{**kwargs, "model_input_name": "input_ids"})

    return type(original.__name__, (original,), {"_prepare_generated_length": prepare_generated_length})


@_repair(*(f"{place}._expand_inputs_for_generation" for place in _WITH_IMAGES))
def leave_images_to_lavis(original: Any) -> Any:
    """``generate`` repeats every tensor for each beam, the image's vectors too, which LAVIS has repeated before."""
    return staticmethod(old_transformers.expand_inputs_for_generation)


@_repair(f"{_T5}:T5ForConditionalGeneration.forward")
def scale_only_what_was_scaled(original: Any) -> Any:
    """A T5's configuration says ``tie_word_embeddings`` of all, and the rest in ``scale_decoder_outputs``.

    LAVIS scales what goes into the head by the former, which is wrong of Flan-T5.
    """

    @functools.wraps(original)
    def forward(self, *args, **kwargs):
        tied = self.config.tie_word_embeddings
        try:
            self.config.tie_word_embeddings = getattr(self.config, "scale_decoder_outputs", tied)
            return original(self, *args, **kwargs)
        finally:
            self.config.tie_word_embeddings = tied

    return forward

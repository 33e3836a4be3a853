"""Repairs of LAVIS's own models, which were written against transformers 4.26: nothing of transformers is changed.

Each function names what transformers, numpy or LAVIS itself lacks, and can go when LAVIS is fixed. What 4.26 still has
stays as it is.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any

from gitllm_plugin.host import old_transformers
from gitllm_plugin.host.patching import repair_of

_MED = "lavis.models.med"
_NLVR = "lavis.models.blip_models.nlvr_encoder"
_QFORMER = "lavis.models.blip2_models.Qformer"
_OPT = "lavis.models.blip2_models.modeling_opt"
_T5 = "lavis.models.blip2_models.modeling_t5"
_BASES = (
    f"{_MED}:BertPreTrainedModel",
    f"{_NLVR}:BertPreTrainedModel",
    f"{_QFORMER}:BertPreTrainedModel",
    f"{_OPT}:OPTPreTrainedModel",
    f"{_T5}:T5PreTrainedModel",
)
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
_GENERATING = (
    f"{_MED}:BertLMHeadModel",
    f"{_QFORMER}:BertLMHeadModel",
    f"{_OPT}:OPTForCausalLM",
    f"{_T5}:T5ForConditionalGeneration",
)
_REPAIRS: list[Callable[[], None]] = []


def repair_models() -> None:
    """Apply all repairs of this file; LAVIS must have been imported. Calling it again does nothing."""
    for repair in _REPAIRS:
        repair()


def _repair(*places: str) -> Callable[[Callable[[Any], Any]], Callable[[], None]]:
    """Make a function a repair of these places, see :func:`~gitllm_plugin.host.patching.repair_of`."""

    def decorate(function: Callable[[Any], Any]) -> Callable[[], None]:
        _REPAIRS.append(repair_of(*places)(function))
        return _REPAIRS[-1]

    return decorate


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


@_repair(*(f"{place}.prepare_inputs_for_generation" for place in _GENERATING))
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


@_repair(*(f"{place}._expand_inputs_for_generation" for place in _GENERATING[:3]))
def leave_images_to_lavis(original: Any) -> Any:
    """``generate`` repeats every tensor for each beam, the image's vectors too, which LAVIS has repeated before."""
    return staticmethod(old_transformers.expand_inputs_for_generation)


# ------------------------------------------------------------------------------------------------ single models' faults


@_repair(*(f"{base}._init_weights" for base in _BASES[:3]))
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


@_repair("lavis.models.blip_models.blip:BlipBase.init_tokenizer")
def number_the_encoders_token(found: Any) -> Any:
    """Tokenizers no longer have ``additional_special_tokens_ids``."""
    from transformers import BertTokenizer

    if hasattr(BertTokenizer, "additional_special_tokens_ids"):
        return found

    def init_tokenizer(cls):
        tokenizer = BertTokenizer.from_pretrained("bert-base-uncased")
        tokenizer.add_special_tokens({"bos_token": "[DEC]"})
        tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
        tokenizer.enc_token_id = tokenizer.convert_tokens_to_ids("[ENC]")
        return tokenizer

    return classmethod(init_tokenizer)


@_repair("lavis.models.albef_models.albef_pretrain:np", "lavis.models.alpro_models.alpro_retrieval:np")
def spell_infinity(numpy: Any) -> Any:
    """``np.Inf`` is gone from numpy 2."""

    class Numpy:
        """numpy, and the name that it had for infinity."""

        Inf = float("inf")

        def __getattr__(self, name: str) -> Any:
            return getattr(numpy, name)

    return numpy if hasattr(numpy, "Inf") else Numpy()


@_repair("lavis.models.blip_models.blip_classification:BlipIntermediateOutput")
def keep_what_the_teacher_saw(original: Any) -> Any:
    """``blip_classification`` hands an output that ``BlipIntermediateOutput`` does not have: it cannot be trained."""
    import dataclasses

    if "encoder_output_m" in {field.name for field in dataclasses.fields(original)}:
        return original
    field = ("encoder_output_m", Any, dataclasses.field(default=None))
    return dataclasses.make_dataclass("BlipIntermediateOutput", [field], bases=(original,))


@_repair(
    *(
        f"lavis.models.{module}:all_gather_with_grad"
        for module in ("alpro_models.alpro_retrieval", "blip_models.blip_retrieval", "blip2_models.blip2_qformer")
    )
)
def gather_from_other_ranks_only_where_there_are_any(original: Any) -> Any:
    """The size of the process group is asked for where there is none."""
    import torch.distributed

    def all_gather_with_grad(tensors):
        return original(tensors) if torch.distributed.is_initialized() else tensors

    return all_gather_with_grad


@_repair("lavis.models.blip2_models.blip2_qformer:dist")
def be_the_first_rank_where_there_is_none(distributed: Any) -> Any:
    """The rank is asked for where there is no process group."""

    class Distributed:
        """torch.distributed, where a process alone is the first."""

        def __getattr__(self, name: str) -> Any:
            return getattr(distributed, name)

        def get_rank(self) -> int:
            return distributed.get_rank() if distributed.is_initialized() else 0

    return Distributed()


@_repair("lavis.models.clip_models.model:CLIP.loss")
def contrast_in_one_process(of_a_group: Any) -> Any:
    """CLIP's loss wants a process group."""
    import torch.distributed

    def loss(self):
        if self._loss is None and not torch.distributed.is_initialized():
            from lavis.models.clip_models.loss import ClipLoss

            self._loss = ClipLoss(world_size=1, rank=0)
        return of_a_group.fget(self)

    return property(loss)


@_repair("lavis.models.pnp_vqa_models.pnp_unifiedqav2_fid:T5EncoderWrapper.__init__")
def wrap_encoders_that_stay_whole(original: Any) -> Any:
    """T5 no longer has ``parallelize``."""

    @functools.wraps(original)
    def init(self, encoder):
        if not hasattr(encoder, "parallelize"):
            encoder.parallelize = None
        original(self, encoder)

    return init


@_repair("lavis.models.pnp_vqa_models.pnp_unifiedqav2_fid:T5EncoderWrapper.forward")
def name_what_the_encoder_gives(original: Any) -> Any:
    """T5 asks the encoder's output for its ``last_hidden_state``: a tuple has none."""

    @functools.wraps(original)
    def forward(self, *args, **kwargs):
        from transformers.modeling_outputs import BaseModelOutput

        given = original(self, *args, **kwargs)
        return BaseModelOutput(last_hidden_state=given[0]) if isinstance(given, tuple) else given

    return forward


@_repair("lavis.models.gpt_models.gpt_dialogue:GPTDialogue.__init__")
def give_the_configuration_to_gpt2(original: Any) -> Any:
    """``BaseModel``, the first of two parents, takes no configuration, so that no ``GPTDialogue`` can be made."""

    def init(self, config, len_video_ft=4224):
        from torch import nn
        from transformers import GPT2LMHeadModel

        GPT2LMHeadModel.__init__(self, config)
        self.video_ff = nn.Linear(len_video_ft, config.n_embd)
        self.video_ff_out = nn.Linear(config.n_embd, len_video_ft)
        self.model_parallel = False
        self.device_map = None
        self.post_init()

    return init


@_repair("lavis.models.gpt_models.gpt_dialogue:GPTDialogue.from_config")
def make_a_dialogue_model_of_gpt2(found: Any) -> Any:
    """``from_config`` gives a plain GPT-2, which knows no videos."""

    def from_config(cls, cfg):
        from transformers import GPT2LMHeadModel

        length = cfg.get("len_video_ft", 4224)
        # BaseModel's from_pretrained, which comes first, takes the name of a model type.
        model = GPT2LMHeadModel.from_pretrained.__func__(cls, "gpt2", len_video_ft=length)
        model.resize_token_embeddings(cfg["len_tokenizer"])
        return model

    return classmethod(from_config)

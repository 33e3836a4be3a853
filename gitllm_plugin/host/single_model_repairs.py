"""Repairs of single models of LAVIS's: names that are gone, and faults of LAVIS's own.

As in :mod:`gitllm_plugin.host.model_repairs`, each function can go when LAVIS is fixed.
"""

import functools
import importlib.util
from typing import Any

from gitllm_plugin.host.patching import Repairs, apply_all

_REPAIRS = Repairs()
_repair = _REPAIRS.of


def repair_single_models() -> None:
    """Apply all repairs of this file; LAVIS must have been imported. Calling it again does nothing."""
    apply_all(_REPAIRS)


@_repair("lavis.models.blip_models.blip:BlipBase.__init__")
def open_blip_to_every_transformers(original: Any) -> Any:
    """Git main refuses every transformers from 4.27 on."""
    from lavis.models.base_model import BaseModel

    if original is BaseModel.__init__:
        return original

    def init(self):
        BaseModel.__init__(self)

    return init


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


@_repair("lavis.models.blip_models.blip_vqa:BlipVQA.forward", "lavis.models.albef_models.albef_vqa:AlbefVQA.forward")
def weigh_answers_by_a_tensor(original: Any) -> Any:
    """Git main's data sets give the weights of answers as a list, by which no loss can be multiplied."""
    import torch

    @functools.wraps(original)
    def forward(self, samples):
        if isinstance(samples.get("weight"), list):
            weights = torch.tensor(samples["weight"], dtype=torch.float32, device=samples["image"].device)
            samples = {**samples, "weight": weights}
        return original(self, samples)

    return forward


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


_WITH_LANGUAGE_MODELS = {
    "lavis.models.blip2_models.blip2_opt": "Blip2OPT",
    "lavis.models.blip2_models.blip2_t5": "Blip2T5",
    "lavis.models.blip2_models.blip2_t5_instruct": "Blip2T5Instruct",
    "lavis.models.blip2_models.blip2_vicuna_instruct": "Blip2VicunaInstruct",
}


@_repair(
    *(f"{module}:{name}.__init__" for module, name in _WITH_LANGUAGE_MODELS.items() if importlib.util.find_spec(module))
)
def compute_in_one_format_without_a_gpu(original: Any) -> Any:
    """Language models are in half precision, and the rest in float32, which a GPU's autocast alone can mix."""
    import torch

    @functools.wraps(original)
    def init(self, *args, **kwargs):
        original(self, *args, **kwargs)
        if not torch.cuda.is_available():
            self.float()

    return init


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

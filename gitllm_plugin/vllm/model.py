"""GIT-LLM as a model of vLLM's: image encoder and projection of this package, the language model vLLM's own.

By vLLM's interface of multimodal models, as of version 0.32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoTokenizer, BatchFeature
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.model_loader.weight_utils import safetensors_weights_iterator
from vllm.model_executor.models.interfaces import SupportsMultiModal, SupportsPP
from vllm.model_executor.models.utils import init_vllm_registered_model, maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptIndexTargets,
    PromptInsertion,
    PromptUpdateDetails,
)

from gitllm_plugin.modeling.description import IMAGE_ENCODER, LANGUAGE_MODEL
from gitllm_plugin.modeling.folder import PROJECTION
from gitllm_plugin.modeling.projection import KINDS, Projection
from gitllm_plugin.modeling.vision import ImageEncoder
from gitllm_plugin.processors.transform_config import transform_of_encoder
from gitllm_plugin.vllm.checks import check_attention, check_folder, check_language_model


class GitLLMInfo(BaseProcessingInfo):
    """What the processor needs to know of a folder."""

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """One picture a question."""
        return {"image": 1}

    @property
    def folder(self) -> Path:
        """The exported folder."""
        return Path(self.ctx.model_config.model)

    def transform(self) -> Any:
        """From a picture to pixels, as in training."""
        return transform_of_encoder(str(self.folder / IMAGE_ENCODER))

    def num_image_tokens(self) -> int:
        """Tokens of a picture, counted by an encoder without weights."""
        config, side = self.get_hf_config(), self.transform().image_size
        encoder = ImageEncoder.from_config(config.vision_config, config.vision_layer)
        projection = Projection(1, 1, kind=config.projection, factor=config.projection_factor)
        return projection.num_tokens(encoder.num_tokens(side, side), encoder.grid_shape(side, side))

    def image_token(self) -> int:
        """A token that stands in a picture's slots until its vectors do; any will do."""
        tokenizer: Any = AutoTokenizer.from_pretrained(self.folder / LANGUAGE_MODEL)
        return next(int(t) for t in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if t is not None)


class GitLLMDummyInputs(BaseDummyInputsBuilder[GitLLMInfo]):
    """Pictures by which vLLM measures memory."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """No text is needed."""
        return ""

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Mapping[str, Any]) -> Any:
        """Give pictures of the usual size."""
        side = self.info.transform().image_size
        return {"image": self._get_dummy_images(width=side, height=side, num_images=mm_counts.get("image", 0))}


class GitLLMMultiModalProcessor(BaseMultiModalProcessor[GitLLMInfo]):
    """Pictures to pixels, and image tokens in front of the prompt."""

    def _call_hf_processor(self, hf_data: Mapping[str, Any], hf_kwargs: Mapping[str, Any]) -> BatchFeature:
        transform = self.info.transform()
        return BatchFeature({"pixel_values": torch.stack([transform(picture) for picture in hf_data["images"]])})

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return {"pixel_values": MultiModalFieldConfig.batched("image")}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        token = self.info.image_token()
        tokens = PromptUpdateDetails.select_token_id([token] * self.info.num_image_tokens(), embed_token_id=token)
        return [PromptInsertion(modality="image", target=PromptIndexTargets.start(), insertion=tokens)]


@MULTIMODAL_REGISTRY.register_processor(GitLLMMultiModalProcessor, info=GitLLMInfo, dummy_inputs=GitLLMDummyInputs)
class GitLLMForConditionalGeneration(nn.Module, SupportsMultiModal, SupportsPP):
    """The model.

    Raises:
        ConfigError: vLLM would compute something else, see :mod:`~gitllm_plugin.vllm.checks`.
    """

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """Nothing stands for a picture in a prompt."""
        return None

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config: Any = vllm_config.model_config.hf_config
        folder = Path(vllm_config.model_config.model)
        check_folder(folder)
        check_language_model(config.text_config)
        self.config, self.folder = config, folder
        with self._mark_tower_model(vllm_config, "image"):
            kind = config.projection
            self.image_encoder = ImageEncoder.from_pretrained(
                str(folder / IMAGE_ENCODER), final_norm=not KINDS[kind].has_norm, dtype=vllm_config.model_config.dtype
            )
            self.image_encoder.layer = config.vision_layer
            self.projection = Projection(
                self.image_encoder.vision_dim,
                config.text_config.hidden_size,
                self.image_encoder.layer_norm_eps,
                kind,
                config.projection_factor,
            )
        text = config.text_config
        text.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[text.model_type]]
        with self._mark_language_model(vllm_config):
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config, hf_config=text, prefix=maybe_prefix(prefix, "language_model")
            )
        check_attention(layer.attn_backend for layer in self.language_model.modules() if isinstance(layer, Attention))
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Turn pictures into vectors, ``[n, P, D]``."""
        pixels = kwargs.get("pixel_values")
        if pixels is None:
            return []
        vectors = self.projection(
            self.image_encoder(pixels.to(self.image_encoder.dtype)), self.image_encoder.grid_of(pixels)
        )
        return vectors.to(next(self.language_model.parameters()).dtype)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the language model."""
        if intermediate_tensors is not None:
            inputs_embeds = None
        return self.language_model.model(input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Compute logits."""
        return self.language_model.compute_logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Read the language model's and the projection's; the image encoder's are read."""
        files = sorted(map(str, (self.folder / LANGUAGE_MODEL).glob("*.safetensors")))
        loaded = self.language_model.load_weights(safetensors_weights_iterator(files, False))
        projection = {
            name.removeprefix("projection."): weight for name, weight in load_file(self.folder / PROJECTION).items()
        }
        self.projection.load_state_dict(projection)
        here = {name for name, _ in self.named_parameters() if not name.startswith("language_model.")}
        return here | {f"language_model.{name}" for name in loaded}

"""A GIT-LLM as a model of transformers: ``from_pretrained``, ``generate`` and ``save_pretrained`` by its names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers.generation import GenerationConfig, GenerationMixin
from transformers.modeling_outputs import CausalLMOutput
from transformers.modeling_utils import PreTrainedModel

from gitllm_plugin.common.hub import local_folder
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.hf.configuration import GitLLMConfig

if TYPE_CHECKING:
    from gitllm_plugin.modeling.folder import LoadedFolder
    from gitllm_plugin.modeling.model import GitLLM

_GENERATION_CONFIG = "generation_config.json"

SETTINGS = frozenset(
    (
        *("max_new_tokens", "min_new_tokens", "max_time", "num_return_sequences", "cache_implementation"),
        *("do_sample", "temperature", "top_k", "top_p", "min_p"),
        *("num_beams", "early_stopping", "length_penalty"),
        *("repetition_penalty", "no_repeat_ngram_size"),
        *("eos_token_id", "pad_token_id"),
        *("return_dict_in_generate", "output_scores", "output_logits"),
    )
)
"""What ``generate`` takes of a generation configuration, or by name."""
OBJECTS = frozenset(("streamer", "stopping_criteria", "logits_processor"))
"""What it takes by name alone."""
_OF_LOADING = frozenset(("_from_auto", "_from_pipeline", "adapter_kwargs", "trust_remote_code", "use_safetensors"))
"""Arguments with which transformers itself calls ``from_pretrained``, and those that ask for what is so anyway."""
_OF_SAVING = frozenset(("max_shard_size", "safe_serialization", "save_original_format", "token", "is_main_process"))


class GitLLMForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """:class:`~gitllm_plugin.modeling.model.GitLLM` with transformers' habits. Everything is computed there.

    Args:
        config: as the folder says.
        loaded: what the folder held; None is refused, since there is no model without weights here.

    Attributes:
        model: the model itself.
        generation_config: defaults of :meth:`generate`: greedy, at most 30 new tokens.
    """

    config_class = GitLLMConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = False

    def __init__(self, config: GitLLMConfig, loaded: LoadedFolder[GitLLM] | None = None) -> None:
        if loaded is None:
            raise ConfigError(
                "a GIT-LLM is not made of a configuration alone, whose weights would be random: open a folder that "
                "`gitllm export` wrote with from_pretrained"
            )
        super().__init__(config)
        self.model = loaded.model
        self._loaded = loaded
        self.all_tied_weights_keys: dict[str, str] = {}
        self.generation_config = _default_generation(loaded)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        config: GitLLMConfig | None = None,
        dtype: str | torch.dtype | None = None,
        device_map: Any = None,
        **kwargs: Any,
    ) -> GitLLMForConditionalGeneration:
        """Read a folder of ``gitllm export``, whole or not at all.

        Args:
            pretrained_model_name_or_path: the folder, or ``user/name`` on the model hub.
            config: as the folder has it; it changes nothing.
            dtype: of language model and image encoder; what was trained stays float32. None or ``auto``: bfloat16 where
                this machine is fast in it, else float32.
            device_map: a device, or ``auto`` for a GPU if there is one; None: the CPU.
            **kwargs: ``revision``, ``cache_dir``, ``token``, ``local_files_only`` and ``force_download`` of the hub.

        Raises:
            ConfigError: see :func:`~gitllm_plugin.modeling.load_folder`; or an argument is not known here.
        """
        from gitllm_plugin.modeling.build import load_folder

        dtype = kwargs.pop("torch_dtype", None) if dtype is None else dtype
        hub = {name: kwargs.pop(name) for name in _HUB if name in kwargs}
        _refuse(kwargs, _OF_LOADING, "from_pretrained", "dtype, device_map", _HUB)
        folder = local_folder(pretrained_model_name_or_path, **{k: v for k, v in hub.items() if v is not None})
        loaded = load_folder(folder, str(dtype or "auto").removeprefix("torch."))
        own = cast(GitLLMConfig, GitLLMConfig.from_pretrained(str(folder)))
        if config is not None and (differing := config.differs_from(own)):
            raise ConfigError(
                f"the configuration that was given is not that of {folder}: {', '.join(differing)}. Weights fit their "
                "own alone: leave it out, or train with other settings"
            )
        if (config or own)._attn_implementation is not None:
            raise ConfigError("attn_implementation: this model chooses by itself how it attends; leave it out")
        own.name_or_path = str(pretrained_model_name_or_path)
        model = cls(own, loaded)
        if (folder / _GENERATION_CONFIG).is_file():
            model.generation_config = GenerationConfig.from_pretrained(str(folder))
        return cast(Any, model.to(_device(device_map))).eval()

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        num_images: Tensor | None = None,
        image_index: Tensor | None = None,
        image_marks: Tensor | None = None,
    ) -> CausalLMOutput:
        """Score texts about pictures, see :meth:`gitllm_plugin.modeling.model.GitLLM.forward`.

        Returns:
            ``loss`` (with labels) and ``logits [N, T, V]`` at the text's positions.
        """
        where = {"num_images": num_images, "image_index": image_index, "image_marks": image_marks}
        found = self.model(input_ids, attention_mask, pixel_values, labels, **where)
        return CausalLMOutput(loss=found.loss, logits=found.logits)

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        num_images: Tensor | None = None,
        image_index: Tensor | None = None,
        image_marks: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """Continue prompts about pictures, see :meth:`gitllm_plugin.modeling.model.GitLLM.generate`.

        Args:
            input_ids, attention_mask, pixel_values, num_images, image_index, image_marks: of the processor.
            generation_config: in the place of the model's own.
            **kwargs: :data:`SETTINGS` of it by name, and ``streamer``, ``stopping_criteria``, ``logits_processor``.

        Returns:
            Long ``[N, T + L]``, the prompts and behind them what is new, as of all models of transformers that read a
            text; or transformers' output object with such ``sequences``.

        Raises:
            ConfigError: a setting that is not known here. DataError: image and prompt are longer than the context.
        """
        settings = _settings_of(generation_config or self.generation_config)
        _refuse(kwargs, SETTINGS | OBJECTS, "generate", ", ".join(sorted(SETTINGS | OBJECTS)))
        settings |= {name: value for name, value in kwargs.items() if value is not None}
        where = {"num_images": num_images, "image_index": image_index, "image_marks": image_marks}
        found = self.model.generate(input_ids, attention_mask, pixel_values, **where, **settings)
        new = found if isinstance(found, Tensor) else found.sequences
        both = torch.cat([input_ids.repeat_interleave(len(new) // len(input_ids), dim=0), new], dim=1)
        if isinstance(found, Tensor):
            return both
        found.sequences = both
        return found

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | Path, state_dict: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Write a folder as ``gitllm export`` does, with tokenizer, image processor and settings; safetensors only.

        What a folder has of an earlier model is replaced, other files in it stay.

        Raises:
            ConfigError: an argument that is not known here. StorageError: it cannot be written.
        """
        _refuse(kwargs, _OF_SAVING, "save_pretrained", "push_to_hub of the model itself uploads")
        if state_dict is not None or kwargs.get("safe_serialization") is False:
            raise ConfigError("save_pretrained writes this model's own weights, as safetensors; leave state_dict out")
        if not kwargs.get("is_main_process", True):
            return
        from gitllm_plugin.hf.saving import write_model

        write_model(self._loaded, self.generation_config, Path(save_directory))

    def get_input_embeddings(self) -> nn.Module:
        """Give the language model's."""
        return cast(nn.Module, self.model.language_model.get_input_embeddings())

    def get_output_embeddings(self) -> nn.Module:
        """Give the language model's head."""
        return cast(nn.Module, self.model.language_model.get_output_embeddings())


_HUB = ("revision", "cache_dir", "token", "local_files_only", "force_download")


def _refuse(given: Mapping[str, Any], taken: frozenset[str], where: str, *advice: Any) -> None:
    """Refuse what would be swallowed."""
    unknown = sorted(name for name in given.keys() - taken if given[name] is not None)
    if unknown:
        known = ", ".join(text if isinstance(text, str) else ", ".join(text) for text in advice)
        raise ConfigError(f"{where} of a GIT-LLM does not know {', '.join(unknown)}; it takes: {known}")


def _default_generation(loaded: LoadedFolder[GitLLM]) -> GenerationConfig:
    """Say what :meth:`Pipeline.answer` does: greedy, with the ends of training."""
    from gitllm_plugin.inference.asking import Decoding
    from gitllm_plugin.modeling.build import make_text_encoder

    ends: dict[str, Any] = {}
    if loaded.tokenizer is not None:
        family = loaded.model.decoder.family if loaded.settings.get("chat_template") else None
        ends = make_text_encoder(loaded.model.language_model, loaded.tokenizer, conversation=family).special_tokens
    return GenerationConfig(**Decoding().as_arguments(), **ends)


def _settings_of(config: GenerationConfig) -> dict[str, Any]:
    given = {name: value for name, value in config.to_diff_dict().items() if value is not None}
    for of_no_meaning in ("transformers_version", "bos_token_id", "_from_model_config"):
        given.pop(of_no_meaning, None)
    _refuse(given, SETTINGS, "generation_config", ", ".join(sorted(SETTINGS)))
    # What is the default here may be another in the language model's own configuration, which fills gaps.
    return {name: value for name in SETTINGS if (value := getattr(config, name, None)) is not None}


def _device(device_map: Any) -> Any:
    from gitllm_plugin.common.device import default_device

    if isinstance(device_map, Mapping) and len(set(device_map.values())) == 1:
        device_map = next(iter(device_map.values()))
    if device_map == "auto":
        return default_device()
    if device_map is None or isinstance(device_map, (str, int, torch.device)):
        try:
            return torch.device("cpu" if device_map is None else device_map)
        except RuntimeError as error:
            raise ConfigError(f"device_map is {device_map!r}, which is no device: {error}") from error
    raise ConfigError(f"device_map is {device_map!r}; a GIT-LLM stands on one device: name it, or auto")

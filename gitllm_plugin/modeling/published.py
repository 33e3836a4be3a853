"""Checkpoints of the published GIT-LLM implementation, opened as they are.

That implementation subclasses each language model and keeps the image encoder, the projection and the
temporal embeddings inside it; ``<root>`` is the decoder's own prefix (``model.``, ``transformer.``,
``gpt_neox.``)::

    <root>image_encoder.*                              CLIP ViT
    <root>visual_projection.visual_projection.{0,1}.*  Linear, LayerNorm
    <root>img_temporal_embedding.{i}                   (1, 1, vision width), one a frame
    everything else                                    the language model, by the names it had then
"""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from gitllm_plugin.common.file_faults import check_file, read_json
from gitllm_plugin.common.weights import DamagedError, load_plain_data
from gitllm_plugin.errors import ConfigError, first_line
from gitllm_plugin.modeling.build import resolve_family
from gitllm_plugin.modeling.folder import PREPROCESSOR, save_folder
from gitllm_plugin.modeling.model import GitLLM
from gitllm_plugin.modeling.pretrained import TOKENIZER_FILES, account, check_weight_files, listed, weight_files
from gitllm_plugin.modeling.sizes import check_model, check_numbers
from gitllm_plugin.modeling.vision import ImageEncoder

_PREFIX = "git_"
_PROJECTION = "visual_projection.visual_projection."
_TEMPORAL = re.compile(r"img_temporal_embedding\.(\d+)$")
_LORA = re.compile(r"(?P<layer>.+)\.lora_(?P<half>[AB])\.(?:\w+\.)?weight$")

#: Buffers that older releases of transformers saved and that are computed today.
_COMPUTED = re.compile(r"rotary_emb\.inv_freq$|embeddings\.position_ids$|\.attention\.(masked_)?bias$")

#: Decoder -> name in a published file -> name in transformers; None: not used by the published forward pass.
_RENAMED: dict[str, dict[str, str | None]] = {
    "opt": {
        "model.embed_positions.weight": "model.decoder.embed_positions.weight",
        "model.decoder.embed_positions.weight": None,
    }
}

#: ``model_type`` of what was released beside GIT-LLM, or by it, and cannot be opened -> why.
_REFUSED = {
    "git_japanese_stablelm_alpha": "its language model, Japanese StableLM Alpha, is no architecture of transformers: "
    "it comes as code of its own, and no code of a checkpoint is run here",
    "video_blip": "it is BLIP-2 (a Q-Former between image encoder and language model) and has no GIT projection; "
    "its released language model, Japanese StableLM Alpha, is no architecture of transformers",
    "llava_llama": "it is LLaVA (image tokens read causally, a two-layer projector) and has no GIT projection; "
    "transformers' LlavaForConditionalGeneration is the class for it",
}

#: ``lora_alpha`` of every training configuration that was published, for files that do not say it.
PUBLISHED_LORA_ALPHA = 32


def load_published(
    config: Mapping[str, Any], state_dict: Mapping[str, Tensor], *, lora_alpha: float | None = None
) -> GitLLM:
    """Build a GIT-LLM from a published configuration and its weights.

    Args:
        config: the published ``config.json`` (``model_type`` ``git_opt``, ``git_llama``, ``git_mpt``,
            ``git_gpt_neox``, ...; the image encoder's under ``vision_config``).
        state_dict: the published weights. Tensors are taken over and not copied, unless LoRA is merged into them.
        lora_alpha: of LoRA weights that the file holds unmerged; None: what ``config`` says, else 32, the published
            training configurations' value, with a warning.

    Returns:
        The model in evaluation mode, every parameter trainable, LoRA merged. Decoder and encoder keep the
        checkpoint's dtype; projection and temporal embeddings are float32.

    Raises:
        ConfigError: not a published configuration, or keys that are missing or cannot be explained; the message
            lists them.
    """
    decoder_config = _decoder_config(config)
    family = resolve_family(decoder_config)
    weights = _merge_lora(_plain_names(state_dict), config, lora_alpha)
    by_module = _split(weights, decoder_config.model_type)
    # The class itself, because its `from_pretrained` takes weights without a folder.
    model_class = AutoModelForCausalLM._model_mapping[type(decoder_config)]
    decoder = _load(model_class, decoder_config, by_module["language_model"])
    vision_config = _from_dict(CLIPVisionConfig, config["vision_config"])
    encoder = ImageEncoder(_load(CLIPVisionModel, vision_config, by_module["image_encoder"]))
    temporal = by_module["temporal"]
    _check_frames(config, temporal)
    model = GitLLM(encoder, decoder, max_images=max(len(temporal), 1), family=family)
    _fill(model.projection, by_module["projection"])
    if model.temporal_embedding is not None:
        expected = (1, *model.temporal_embedding.shape[1:])
        for name, value in temporal.items():
            if value.shape != expected:
                raise ConfigError(
                    f"img_temporal_embedding.{name} is {list(value.shape)} in the checkpoint, {list(expected)} by its "
                    "configuration"
                )
        frames = torch.cat([temporal[str(index)] for index in range(len(temporal))])
        model.temporal_embedding.data.copy_(frames)
    return model.requires_grad_().eval()


def read_published(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a published checkpoint's folder, safetensors or ``.bin``, in one file or shards: configuration and weights.

    Weights are mapped into memory and read when they are used; nothing that a file contains is run.

    Raises:
        ConfigError: no such files, or a file that is no plain state dict.
    """
    folder = Path(folder).expanduser()
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} is not the folder of a published checkpoint: it has no config.json")
    config = read_json(folder / "config.json")
    check_numbers(config, folder / "config.json")
    check_weight_files(folder)
    indexed = [file for file in weight_files(folder) if file.suffix != ".json"]
    files = indexed or sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise ConfigError(f"{folder} has neither model.safetensors nor pytorch_model.bin, whole or in shards")
    state_dict: dict[str, Tensor] = {}
    for file in files:
        state_dict |= _read_weights(file)
    return config, state_dict


def convert_published(source: str | Path, target: str | Path, lora_alpha: float | None = None) -> None:
    """Turn the folder of a published checkpoint into one of ours, tokenizer and image processor with it.

    Args:
        source: ``config.json`` and weights.
        target: the folder to make.
        lora_alpha: see :func:`load_published`.

    Raises:
        ConfigError: not a published checkpoint, keys that cannot be explained, or the target is in use.
    """
    source = Path(source).expanduser()
    config, state_dict = read_published(source)
    model = load_published(config, state_dict, lora_alpha=lora_alpha)
    files = [source / name for name in TOKENIZER_FILES if (source / name).exists()]
    for file in files:
        check_file(file)
    save_folder(model, target, tokenizer=files, image_processor=_read_json(source / PREPROCESSOR))


def _read_weights(file: Path) -> dict[str, Tensor]:
    check_file(file)
    if file.suffix == ".safetensors":
        return load_file(file)
    try:
        weights = load_plain_data(file, mmap=True, compare=True)
    except DamagedError as error:
        raise ConfigError(f"{file} is damaged: {error}. Copy or download it again") from error
    except Exception as error:  # noqa: BLE001 - torch raises a different class for each way to be broken
        raise ConfigError(
            f"{file} cannot be read as plain weights: it is damaged, of a format older than torch 1.6, or holds "
            f"objects that could run code ({first_line(error)})"
        ) from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ConfigError(f"{file} is no plain state dict: it holds other things than weights by name")
    return weights


def _decoder_config(config: Mapping[str, Any]) -> PreTrainedConfig:
    given = str(config.get("model_type"))
    model_type = given.removeprefix(_PREFIX)
    if given in _REFUSED:
        raise ConfigError(
            f"a checkpoint of model_type {given!r} cannot be opened: {_REFUSED[given]}. See docs/heron.md"
        )
    if given == model_type or model_type not in CONFIG_MAPPING or "vision_config" not in config:
        raise ConfigError(
            f"not a published GIT-LLM configuration: model_type is {given!r}, expected {_PREFIX}<type> with a type "
            "that transformers has, such as git_opt, git_llama, git_mpt or git_gpt_neox, and a vision_config beside it"
        )
    own = {key: value for key, value in config.items() if key not in ("vision_config", "model_type")}
    return _from_dict(CONFIG_MAPPING[model_type], own)


def _from_dict(config_class: Any, content: Any) -> PreTrainedConfig:
    try:
        return config_class.from_dict(dict(content))
    except Exception as error:  # transformers checks types and values with errors of several kinds
        raise ConfigError(
            f"the published configuration is none of a {config_class.__name__}: {first_line(error)}"
        ) from error


def _plain_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take off what PEFT puts around the model (``base_model.model.``) or a layer (``base_layer.``)."""
    return {
        name.replace("base_model.model.", "").replace(".base_layer.", "."): value for name, value in state_dict.items()
    }


def _merge_lora(weights: dict[str, Tensor], config: Mapping[str, Any], lora_alpha: float | None) -> dict[str, Tensor]:
    """Add each LoRA update to the weight that it belongs to: ``W + scale * B @ A``."""
    halves: dict[str, dict[str, Tensor]] = {}
    merged = {}
    for name, value in weights.items():
        match = _LORA.match(name)
        if match is None:
            merged[name] = value
        else:
            halves.setdefault(f"{match['layer']}.weight", {})[match["half"]] = value
    if not halves:
        return merged
    broken = sorted(name for name, pair in halves.items() if name not in merged or set(pair) != {"A", "B"})
    if broken:
        raise ConfigError(f"LoRA weights without their layer or their other half: {', '.join(broken)}")
    settings = _find_lora_settings(config)
    alpha = lora_alpha if lora_alpha is not None else settings.get("lora_alpha")
    if alpha is None:
        alpha = PUBLISHED_LORA_ALPHA
        warnings.warn(
            f"the checkpoint holds unmerged LoRA and does not say its lora_alpha: {alpha} is assumed, as in the "
            "published training configurations",
            stacklevel=3,
        )
    for name, pair in halves.items():
        rank = pair["A"].shape[0]
        scale = float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)
        base = merged[name]
        if pair["A"].ndim != 2 or pair["B"].shape[1:] != (rank,) or len(pair["B"]) * pair["A"].shape[1] != base.numel():
            shapes = [list(value.shape) for value in (pair["A"], pair["B"], base)]
            raise ConfigError(f"the LoRA of {name} does not fit it: A is {shapes[0]}, B {shapes[1]}, it is {shapes[2]}")
        update = scale * pair["B"].float() @ pair["A"].float()
        merged[name] = (base.float() + update.view(base.shape)).to(base.dtype)
    return merged


def _find_lora_settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Find the mapping in ``config``, at any depth, that says ``lora_alpha``; empty if none does."""
    if "lora_alpha" in config:
        return config
    nested = (_find_lora_settings(value) for value in config.values() if isinstance(value, Mapping))
    return next((found for found in nested if found), {})


def _split(weights: dict[str, Tensor], model_type: str) -> dict[str, dict[str, Tensor]]:
    """Sort weights by the module of GitLLM that they belong to, under that module's own names."""
    anchor = f"{_PROJECTION}0.weight"
    root = next((name.removesuffix(anchor) for name in weights if name.endswith(anchor)), None)
    if root is None:
        raise ConfigError(f"not a published GIT-LLM checkpoint: no key ends with {anchor}")
    renamed = _RENAMED.get(model_type, {})
    by_module: dict[str, dict[str, Tensor]] = {
        module: {} for module in ("image_encoder", "projection", "temporal", "language_model")
    }
    for name, value in weights.items():
        inner = name.removeprefix(root)
        temporal = _TEMPORAL.match(inner)
        target = renamed.get(name, name)
        if _COMPUTED.search(name) or target is None:
            continue
        if inner.startswith("image_encoder."):
            by_module["image_encoder"][inner.removeprefix("image_encoder.")] = value
        elif inner.startswith(_PROJECTION):
            by_module["projection"][inner.removeprefix(_PROJECTION)] = value
        elif temporal:
            by_module["temporal"][temporal[1]] = value
        else:
            by_module["language_model"][target] = value
    return by_module


def _load(model_class: Any, config: PreTrainedConfig, weights: dict[str, Tensor]) -> PreTrainedModel:
    """Make a model of transformers with exactly these weights; transformers knows the names of its older releases."""
    # The checkpoint's own, because `from_pretrained` would otherwise go by its configuration, or float32.
    dtype = next(iter(weights.values())).dtype if weights else torch.float32
    what = f"the checkpoint's {model_class.__name__}"
    try:
        check_numbers(config.to_dict(), what, len(weights))
        size = sum(value.nbytes for value in weights.values())
        check_model(lambda: model_class(copy.deepcopy(config)), size, what)
        model, info = model_class.from_pretrained(
            None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except Exception as error:  # transformers and torch have many errors for sizes that cannot be
        raise ConfigError(f"{what} cannot be built as its configuration says: {first_line(error)}") from error
    account(model, info, what, other_parts=False)
    return model


def _check_frames(config: Mapping[str, Any], temporal: Mapping[str, Tensor]) -> None:
    stated = config.get("num_image_with_embedding") or 0
    wanted = {str(index) for index in range(stated)}
    faults = [f"missing: img_temporal_embedding.{index}" for index in sorted(wanted - temporal.keys(), key=int)]
    faults += [f"too many: img_temporal_embedding.{index}" for index in sorted(temporal.keys() - wanted, key=int)]
    if faults:
        raise ConfigError(f"num_image_with_embedding is {stated}, but of the checkpoint's {listed(faults)}")


def _fill(module: torch.nn.Module, weights: dict[str, Tensor]) -> None:
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigError(f"the checkpoint's visual_projection does not fit: {error}") from error


def _read_json(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.exists() else None

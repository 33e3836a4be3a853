"""A GIT-LLM in a folder that loads anywhere, without the network when its bases are in it::

    git_llm.json             what it is made of
    config.json              the same, as far as transformers asks
    projection.safetensors   projection and temporal embeddings
    language_model/          Hugging Face's model and tokenizer        (or its name, see below)
    image_encoder/           Hugging Face's model and image processor  (or its name)
    adapter/                 LoRA in PEFT's form, where there is any

With ``with_base=False`` the bases are named and not written: a few megabytes beside weights that
everybody has.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from gitllm_plugin.common.checksums import check_files, sums_of_files
from gitllm_plugin.common.file_faults import check_file, read_json
from gitllm_plugin.common.files import new_folder
from gitllm_plugin.common.hub import MODEL_FILES, local_folder
from gitllm_plugin.common.weights import check_same_weights
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling.adapter import check_fingerprint, fingerprint, load_adapter, save_adapter
from gitllm_plugin.modeling.description import (
    DESCRIPTION,
    FORMAT,
    IMAGE_ENCODER,
    LANGUAGE_MODEL,
    LORA,
    MADE_OF,
    TRANSFORMERS_CONFIG,
    place_of,
    read_description,
    says_adapter,
    transformers_config,
)
from gitllm_plugin.modeling.pretrained import (
    is_tokenizer_at,
    load_config,
    load_model,
    load_tokenizer,
    resolve_dtype,
)
from gitllm_plugin.modeling.projection import KINDS
from gitllm_plugin.modeling.self_test import confirm_family
from gitllm_plugin.modeling.trainable import names_of_module
from gitllm_plugin.modeling.vision import ImageEncoder
from gitllm_plugin.modeling.vocabulary import end_tokens, fit_tokenizer

PROJECTION = "projection.safetensors"
PREPROCESSOR = "preprocessor_config.json"
BASES = (LANGUAGE_MODEL, IMAGE_ENCODER)
"""What is made elsewhere, trained or not: in a folder as Hugging Face has it, or by its name."""
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""By safetensors' names."""


_Model = TypeVar("_Model", bound="InFolder")


class InFolder(nn.Module):
    """What can be written into a folder: an image encoder, a language model, and what is trained between them."""

    image_encoder: ImageEncoder
    language_model: PreTrainedModel
    decoder: Any
    projection: Any
    sources: dict[str, str]
    untrained: set[str]

    @property
    def made_of(self) -> dict[str, Any]:
        """Arguments of the class besides its parts."""
        raise NotImplementedError

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> None:
        """Write a folder, see :func:`save_folder`."""
        save_folder(self, folder, **kwargs)

    @classmethod
    def from_pretrained(cls: type[_Model], folder: str | Path, dtype: str = "auto", self_test: bool = True) -> _Model:
        """Read a folder, see :func:`~gitllm_plugin.modeling.load_folder`, which also gives the tokenizer."""
        return read_folder(folder, cls, dtype, self_test).model


@dataclass
class LoadedFolder(Generic[_Model]):
    """What a folder holds.

    Attributes:
        model: in evaluation mode on the CPU; projection and LoRA trainable, the rest frozen.
        tokenizer: the language model's; None where none was saved.
        image_processor: the content of ``preprocessor_config.json``; None where none was saved.
        settings: what the caller of :func:`save_folder` gave.
    """

    model: _Model
    tokenizer: PreTrainedTokenizerBase | None
    image_processor: dict[str, Any] | None
    settings: dict[str, Any]


def save_folder(
    model: InFolder,
    folder: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | Sequence[Path] | None = None,
    image_processor: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    with_base: bool = True,
) -> None:
    """Write a model; the folder appears only when it is complete.

    Args:
        model: LoRA in it stays apart, see :func:`~gitllm_plugin.modeling.lora.merge_lora`.
        folder: must not exist, or be empty.
        tokenizer: the language model's, or its files.
        image_processor: Hugging Face's ``preprocessor_config.json``, put beside the image encoder.
        settings: plain values, kept with the model.
        with_base: whether language model and image encoder are written; else their names are.

    Raises:
        ConfigError: the folder is in use; or without base, one of them was trained, or its name is not known.
    """
    with new_folder(Path(folder)) as target:
        places = {base: base if with_base else _name_of(model, base) for base in BASES}
        if with_base:
            _save_language_model(model, target / LANGUAGE_MODEL)
            model.image_encoder.tower.save_pretrained(target / IMAGE_ENCODER)
        if tokenizer is not None:
            _save_tokenizer(tokenizer, target / LANGUAGE_MODEL)
        if image_processor is not None:
            _save_image_processor(image_processor, target / IMAGE_ENCODER)
        save_file(_projection_state(model), target / PROJECTION)
        if has_lora(model):
            save_adapter(model.language_model, target / LORA, places[LANGUAGE_MODEL])
        description = {
            "format": FORMAT,
            **places,
            "vision_layer": model.image_encoder.layer,
            **model.made_of,
            LORA: has_lora(model),
            "fingerprint": fingerprint(model.language_model),
            "settings": dict(settings or {}),
        }
        configs = model.language_model.config, model.image_encoder.tower.config
        ends = end_tokens(model.language_model)
        _write_json(target / TRANSFORMERS_CONFIG, transformers_config(*configs, description, ends))
        description["checksums"] = sums_of_files(target, MODEL_FILES)
        _write_json(target / DESCRIPTION, description)
        open_weights(target, like=target / DESCRIPTION)


def save_processors(
    folder: Path, tokenizer: PreTrainedTokenizerBase, image_processor: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Write what stands around a model into a folder, which may have the model in it.

    Args:
        folder: exists.
        tokenizer, image_processor, settings: as for :func:`save_folder`.
    """
    _save_tokenizer(tokenizer, folder / LANGUAGE_MODEL)
    _save_image_processor(image_processor, folder / IMAGE_ENCODER)
    if not (folder / DESCRIPTION).is_file():
        return
    description = read_description(folder)
    # The sums of weights stay those of when they were written, and this file's own is in none.
    sums = sums_of_files(folder, [pattern for pattern in MODEL_FILES if not pattern.endswith(".safetensors")])
    sums.pop(DESCRIPTION, None)
    description |= {"settings": dict(settings), "checksums": {**description.get("checksums", {}), **sums}}
    _write_json(folder / DESCRIPTION, description)


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """Read the tokenizer that goes with a folder's model, in it or with the language model that it names.

    Raises:
        ConfigError: not a folder of a GIT-LLM, or the tokenizer is damaged.
    """
    return _load_tokenizer(folder, place_of(folder, read_description(folder), LANGUAGE_MODEL))


def read_folder(
    folder: str | Path, model_class: type[_Model], dtype: str = "auto", self_test: bool = True
) -> LoadedFolder[_Model]:
    """Read what :func:`save_folder` wrote, as a model of the class that wrote it.

    Args:
        folder: its path, or its name on the model hub.
        model_class: :class:`~gitllm_plugin.modeling.model.GitLLM`, which this file is imported by.
        dtype, self_test: as for :func:`~gitllm_plugin.modeling.load_folder`.

    Raises:
        ConfigError: see :func:`~gitllm_plugin.modeling.load_folder`.
    """
    folder = local_folder(folder)
    # First: a library is given no damaged configuration, which decides what is built, and no folder with gaps.
    check_folder(folder, weights=False)
    try:
        loaded = _read(folder, model_class, dtype, self_test)
    except ConfigError as error:
        # Checksums know which file it is, and what failed on it which weights.
        try:
            check_folder(folder)
        except ConfigError as damage:
            raise ConfigError(f"{damage}\n{error}") from error
        raise
    check_folder(folder)
    return loaded


def _read(folder: Path, model_class: type[_Model], dtype: str, self_test: bool) -> LoadedFolder[_Model]:
    description = read_description(folder)
    frozen = resolve_dtype(dtype)
    name, encoder_name = (place_of(folder, description, base) for base in BASES)
    has_adapter, preprocessor = says_adapter(folder, description), _read_preprocessor(folder)
    # Before gigabytes are read.
    family = confirm_family(load_config(name, "language model"), model_class, self_test)
    tokenizer = _load_tokenizer(folder, name)
    decoder = load_model(name, "language model", AutoModelForCausalLM, dtype=frozen)
    check_fingerprint(decoder, description["fingerprint"], folder, name)
    made = {key: description[key] for key in MADE_OF}
    final_norm = not KINDS[description["projection"]].has_norm
    encoder = ImageEncoder.from_pretrained(
        encoder_name, layer=_layer_to_cut(description), final_norm=final_norm, dtype=frozen
    )
    # In the folder, what was behind that layer is gone, and it is the last one.
    encoder.layer = description["vision_layer"]
    model = model_class(encoder, decoder, family=family, **made)
    model.sources = {base: description[base] for base in BASES if description[base] != base}
    _load_projection(model, folder / PROJECTION)
    if has_adapter:
        load_adapter(decoder, folder / LORA)
    if tokenizer is not None:
        fit_tokenizer(tokenizer, decoder, str(folder))
    # What of a base was trained is in the base now, and frozen with it.
    trained = names_of_module(model, "proj") | names_of_module(model, "lora")
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter_name in trained)
    return LoadedFolder(model.eval(), tokenizer, preprocessor, description["settings"])


def check_folder(folder: str | Path, weights: bool = True) -> None:
    """Compare a folder's files with the checksums that were noted when they were written.

    Args:
        folder: the folder.
        weights: whether the bytes of weights are compared too, which takes as long as reading them; else it is only
            seen whether their files are there and not cut off.

    Raises:
        ConfigError: not a folder of a GIT-LLM, or files of it are missing or damaged.
    """
    folder = Path(folder).expanduser()
    sums = read_description(folder).get("checksums", {})  # version 0.1.0 noted none
    if not isinstance(sums, dict):
        raise ConfigError(f"{folder / DESCRIPTION}: checksums is {sums!r:.80}, expected a mapping of files")
    check_files(folder, sums, folder / DESCRIPTION, lambda name: weights or not name.endswith(".safetensors"))


def stored_dtypes(folder: str | Path) -> dict[str, torch.dtype]:
    """Read which dtype language model and image encoder say that their weights have; float32 where they do not.

    Raises:
        ConfigError: not a folder of a GIT-LLM, or a base of it cannot be found.
    """
    folder = Path(folder).expanduser()
    description = read_description(folder)
    configs = {base: load_config(place_of(folder, description, base), base.replace("_", " ")) for base in BASES}
    dtypes = {base: config.dtype for base, config in configs.items()}
    return {base: dtype if isinstance(dtype, torch.dtype) else torch.float32 for base, dtype in dtypes.items()}


def only_dtype(folder: str | Path) -> torch.dtype | None:
    """Find the one dtype that all weights in a folder have; None: several, or a base's files are not at hand.

    Raises:
        ConfigError: not a folder of a GIT-LLM.
    """
    folder = Path(folder).expanduser()
    description = read_description(folder)
    dtypes: set[torch.dtype | None] = set()
    for base in BASES:
        files = list(Path(place_of(folder, description, base)).glob("*.safetensors"))
        if not files:
            return None
        for file in files:
            check_file(file)
            # Of the files' tables of contents: weights may say another dtype than the configuration beside them.
            with safe_open(file, "pt") as weights:
                dtypes |= {_DTYPES.get(weights.get_slice(name).get_dtype()) for name in weights.keys()}  # noqa: SIM118
    return dtypes.pop() if len(dtypes) == 1 else None


def has_lora(model: InFolder) -> bool:
    """Tell whether the language model has LoRA layers."""
    return bool(names_of_module(model, "lora"))


def _save_language_model(model: InFolder, folder: Path) -> None:
    """Write the decoder without the LoRA layers that are in it."""
    # The names of a plain model of transformers, so that transformers alone can load it.
    state = {
        name.replace(".base_layer.", "."): value
        for name, value in model.language_model.state_dict().items()
        if ".lora_" not in name
    }
    model.language_model.save_pretrained(folder, state_dict=state)


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase | Sequence[Path], folder: Path) -> None:
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        tokenizer.save_pretrained(folder)
        return
    folder.mkdir(exist_ok=True)
    for file in tokenizer:
        shutil.copyfile(file, folder / file.name)


def _save_image_processor(image_processor: Mapping[str, Any], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    _write_json(folder / PREPROCESSOR, image_processor)


def _layer_to_cut(description: Mapping[str, Any]) -> int:
    """Tell which layer of the encoder to cut at: layers behind the one that is read were not written."""
    return -1 if description[IMAGE_ENCODER] == IMAGE_ENCODER else description["vision_layer"]


def _name_of(model: InFolder, base: str) -> str:
    if base not in model.sources:
        raise ConfigError(f"the {base} was not loaded by a name, so that it cannot be left out: save it with the base")
    trained = [
        name
        for name, parameter in model.named_parameters()
        if name.startswith(f"{base}.") and ".lora_" not in name and parameter.requires_grad
    ]
    if trained:
        raise ConfigError(
            f"the {base} was trained ({trained[0]}, ...), so that it cannot be left out: save the base too"
        )
    return model.sources[base]


def _projection_state(model: InFolder) -> dict[str, Tensor]:
    names = names_of_module(model, "proj")
    return {name: value.cpu().contiguous() for name, value in model.state_dict().items() if name in names}


def _load_projection(model: InFolder, path: Path) -> None:
    if not path.exists():
        raise ConfigError(f"{path.parent} has no {path.name}")
    check_file(path)
    state = load_file(path)
    check_same_weights(_projection_state(model), state, str(path))
    model.load_state_dict(state, strict=False)
    model.untrained.discard("proj")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def open_weights(folder: Path, like: Path) -> None:
    """Let weights be read by whom ``like`` may be read by: safetensors writes for the owner alone."""
    for weights in folder.rglob("*.safetensors"):
        weights.chmod(like.stat().st_mode)


def _read_preprocessor(folder: Path) -> dict[str, Any] | None:
    # Beside the encoder also where the encoder itself is named and not written.
    path = folder / IMAGE_ENCODER / PREPROCESSOR
    return read_json(path) if path.exists() else None


def _load_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerBase | None:
    """Read what was saved with the model, or else the one that goes with the language model's name."""
    inside = folder / LANGUAGE_MODEL
    if is_tokenizer_at(inside):
        return load_tokenizer(str(inside), "language model")
    # No tokenizer is no fault here: a model can be used without one, and who needs it says so.
    if name == str(inside) or (Path(name).is_dir() and not is_tokenizer_at(Path(name))):
        return None
    return load_tokenizer(name, "language model")

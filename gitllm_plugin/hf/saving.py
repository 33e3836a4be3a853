"""Writing into a folder that may hold an earlier model, as transformers' ``save_pretrained`` does."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from transformers.generation import GenerationConfig

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling.description import DESCRIPTION, IMAGE_ENCODER, LANGUAGE_MODEL, LORA, TRANSFORMERS_CONFIG
from gitllm_plugin.modeling.folder import PROJECTION, LoadedFolder, save_folder

PROCESSOR_CONFIG = "processor_config.json"
_OF_A_MODEL = (DESCRIPTION, TRANSFORMERS_CONFIG, PROJECTION, LANGUAGE_MODEL, IMAGE_ENCODER, LORA, PROCESSOR_CONFIG)


def write_model(loaded: LoadedFolder[Any], generation: GenerationConfig, folder: Path) -> None:
    """Write a model with what stood around it when it was read.

    A new folder appears whole. One in use stays the folder that it is, somebody's mount or working directory, so its
    parts are exchanged one by one when all is written: whoever reads it in that moment, or finds it where the process
    was killed in it, finds no description and is refused, never a mixture; written again, it is whole.

    Args:
        loaded: what was read.
        generation: written beside it.
        folder: of an earlier model in it nothing is left, and the new one has no description until it is whole.

    Raises:
        ConfigError: there is a file of that name. StorageError: it cannot be written.
    """
    if folder.is_file():
        raise ConfigError(f"{folder} is a file; name a folder")
    # Beside it, so that moving is renaming; a folder that is not there, or empty, is written at once.
    in_use = folder.is_dir() and any(folder.iterdir())
    beside = folder.with_name(f".{folder.name}.new")
    _remove(beside)  # of a process that was killed here
    target = beside if in_use else folder
    save_folder(
        loaded.model,
        target,
        tokenizer=loaded.tokenizer,
        image_processor=loaded.image_processor,
        settings=loaded.settings,
    )
    generation.save_pretrained(str(target))
    if not in_use:
        return
    for name in _OF_A_MODEL:  # the description is the first
        _remove(folder / name)
    for part in sorted(target.iterdir(), key=lambda part: part.name == DESCRIPTION):
        os.replace(part, folder / part.name)
    target.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

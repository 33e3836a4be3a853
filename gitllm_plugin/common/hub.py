"""A model's folder by its path, or by its name on the model hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from gitllm_plugin.errors import ConfigError

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
MODEL_FILES = ("*.json", "*.jinja", "*.model", "*.safetensors", "*.txt")
"""What a model's folder is read from: nothing that is code, and no weights of formats that could hold some."""
_FETCHED = (*MODEL_FILES, "language_model.gguf", "image_encoder.onnx")  # of llama.cpp's folders, by their names alone


def local_folder(name: str | Path, **how: Any) -> Path:
    """Find a folder of this machine, or fetch that of a repository: what was fetched before is not fetched again.

    Args:
        name: a path, or ``user/name`` on the model hub where no such path exists.
        **how: arguments of ``huggingface_hub.snapshot_download``: ``revision``, ``cache_dir``, ``token``, ...

    Raises:
        ConfigError: neither, or an empty name; or the hub cannot be reached from here and the files were not fetched
            before.
    """
    if isinstance(name, str) and not name.strip():
        raise ConfigError(
            f"the name of the model is {name!r}, which is empty; give a folder, or a name on the model hub (user/name)"
        )
    folder = Path(name).expanduser()
    if folder.exists() or not _REPOSITORY.fullmatch(str(name)):
        return folder
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ConfigError(
            f"there is no folder {name} here, and a model of the hub is fetched by huggingface_hub, which is not "
            "installed: pip install huggingface_hub"
        ) from error
    try:
        return Path(snapshot_download(str(name), allow_patterns=list(_FETCHED), **how))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{name} is neither a folder here nor a model that the hub gives ({type(error).__name__}); check the "
            "name, or fetch it on a machine that reaches the hub and name its folder"
        ) from error

"""Folders that are to be made. Imports nothing heavy: a folder in use is named before a model is loaded."""

from pathlib import Path

from gitllm_plugin.errors import ConfigError


def check_new_folder(folder: str | Path) -> Path:
    """The folder's path, if nothing is there or an empty folder.

    Raises:
        ConfigError: something is.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists already; name a new folder, or delete it")
    return folder

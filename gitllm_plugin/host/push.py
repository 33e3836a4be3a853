"""An exported folder to the model hub."""

from __future__ import annotations

import re
from pathlib import Path

from gitllm_plugin.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def check_repository(name: str) -> str:
    """Give the name of a repository back.

    Raises:
        ConfigError: it is none.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"--push {name!r} is no name on the model hub; give user/name")
    return name


def check_parts(folder: str | Path) -> None:
    """Refuse a folder that names its language model or image encoder by a folder of this machine.

    Raises:
        ConfigError: it does.
    """
    from gitllm_plugin.modeling.description import DESCRIPTION, IMAGE_ENCODER, LANGUAGE_MODEL, read_description

    description = Path(folder) / DESCRIPTION
    if not description.is_file():  # of transformers' own class, which is whole
        return
    content = read_description(Path(folder))
    for part in (LANGUAGE_MODEL, IMAGE_ENCODER):
        if content[part] != part and not _NAME.fullmatch(content[part]):
            raise ConfigError(
                f"{folder} is written, but not uploaded: it names its {part.replace('_', ' ')} by a folder of this "
                f"machine ({content[part]}), and nobody else could open it. Export it with the base, or train on the "
                "name that the part has on the hub"
            )


def push_folder(folder: str | Path, name: str) -> str:
    """Upload a folder; a repository that is not there is made, and private.

    Args:
        folder: as :func:`gitllm_plugin.host.export.export_run` wrote it.
        name: ``user/name``. Who may write is known by the hub's own login (``hf auth login``, ``HF_TOKEN``).

    Returns:
        the address.

    Raises:
        ConfigError: the hub cannot be reached, or does not allow it; the folder stays.
    """
    import huggingface_hub

    check_repository(name)
    check_parts(folder)
    try:
        # Private: what was trained on may be.
        huggingface_hub.create_repo(name, private=True, exist_ok=True)
        return str(huggingface_hub.upload_folder(repo_id=name, folder_path=str(folder)))
    except Exception as error:  # noqa: BLE001 - its client's errors have no common class
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ConfigError(
            f"{folder} is written, but {name} on the model hub did not take it ({type(error).__name__}: {reason}). "
            f"Try again with `hf upload {name} {folder}`"
        ) from error

"""Finds the YAML files that come with the package.

An installed package holds the folders ``configs/`` and ``projects/`` itself; in a source checkout they lie beside it.
"""

import contextlib
from importlib.resources import files
from pathlib import Path

from gitllm_plugin.errors import ConfigError


def config_path(*parts: str) -> str:
    """Give the absolute path of a file or folder under ``configs/``.

    Args:
        parts: the path below ``configs/``, as in ``config_path("datasets", "m3it", "defaults.yaml")``.

    Raises:
        FileNotFoundError: when neither place has it.
    """
    places = _places("configs", *parts)
    for place in places:
        if place.exists():
            return str(place)
    raise FileNotFoundError(
        f"gitllm_plugin comes without configs/{'/'.join(parts)}: neither {places[0]} nor {places[1]} exists. "
        "Install the package again, or run from a whole source checkout."
    )


def find_config(path: str | Path) -> Path:
    """Give the configuration file that a user named.

    Args:
        path: a file; one that begins with ``projects/`` may also be the package's own, from any folder.

    Returns:
        ``path`` itself where it exists, else the package's file.

    Raises:
        ConfigError: there is no such file; the message names every place that was looked at.
    """
    path = Path(path)
    places = [path, *(_places(*path.parts) if path.parts[:1] == ("projects",) else ())]
    for place in places:
        with contextlib.suppress(OSError, ValueError):  # too long for a name, or with NUL
            if place.is_file():
                return place
    looked = ", ".join(str(Path.cwd() / place) for place in places)
    raise ConfigError(f"there is no configuration file '{path}'; looked for {looked}")


def _places(*parts: str) -> list[Path]:
    package = Path(str(files("gitllm_plugin")))
    return [folder.joinpath(*parts) for folder in (package, package.parent)]

"""Finds the YAML files that come with the package."""

from importlib.resources import files
from pathlib import Path


def config_path(*parts: str) -> str:
    """The absolute path of a file or folder under ``configs/``.

    An installed package holds the folder itself, as ``gitllm_plugin.configs``; in a source checkout it lies
    beside the package.

    Args:
        parts: the path below ``configs/``, as in ``config_path("datasets", "m3it", "defaults.yaml")``.

    Raises:
        FileNotFoundError: if neither place has it.
    """
    package = Path(str(files("gitllm_plugin")))
    places = [folder.joinpath("configs", *parts) for folder in (package, package.parent)]
    for place in places:
        if place.exists():
            return str(place)
    raise FileNotFoundError(
        f"gitllm_plugin comes without configs/{'/'.join(parts)}: neither {places[0]} nor {places[1]} exists. "
        "Install the package again, or run from a whole source checkout."
    )

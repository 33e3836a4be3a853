"""What is pretrained, by its name: in which dtype it is loaded, and why it could not be."""

from __future__ import annotations

from typing import Any

import torch

from gitllm_plugin.common.device import default_device, has_fast_bf16
from gitllm_plugin.errors import ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_dtype(name: str) -> torch.dtype:
    """Find the dtype that a name means: of :data:`DTYPES`, or ``auto``, bfloat16 where this machine is fast in it.

    Raises:
        ConfigError: no such dtype.
    """
    if name == "auto":
        return torch.bfloat16 if has_fast_bf16(default_device()) else torch.float32
    if name not in DTYPES:
        raise ConfigError(f"dtype {name!r}; allowed: auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def load_by_name(name: str, what: str, loader: Any, **kwargs: Any) -> Any:
    """Call ``loader(name, **kwargs)``, and say what is wrong with the name if it fails.

    Args:
        name: hub name or local folder.
        what: kind of thing, for the message (``language model``).
        loader: a ``from_pretrained`` of transformers or of ours.
        **kwargs: go to it.

    Raises:
        ConfigError: ``name`` is neither a folder nor a model that can be fetched, or is one of an unknown kind.
    """
    try:
        return loader(name, **kwargs)
    # Some loaders of ours have said it better already.
    except ConfigError:
        raise
    except ValueError as error:  # transformers' word for a model_type that it does not have
        raise ConfigError(f"{what} {name!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    except OSError as error:
        raise ConfigError(
            f"{what} {name!r} cannot be loaded: it is neither a local folder with a model in it nor a name that the "
            f"model hub answers to from here ({str(error).splitlines()[0]})"
        ) from error

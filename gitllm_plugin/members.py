"""What a protocol asks for, and what of it an object has."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn


def members(protocol: type) -> dict[str, bool]:
    """Name what a protocol and those it extends ask for, and whether each is a method."""
    found: dict[str, bool] = {}
    for cls in reversed(protocol.__mro__):
        if getattr(cls, "_is_protocol", False):
            found |= {name: False for name in vars(cls).get("__annotations__", {})}
            found |= {name: inspect.isfunction(value) for name, value in vars(cls).items() if name[0] != "_"}
    return found


def has_member(thing: Any, name: str, is_method: bool) -> bool:
    """Tell whether an object has a method, or an attribute, of this name."""
    if not is_method:
        return hasattr(thing, name)
    method = getattr(thing, name, None)
    # An object that can be called is as good as a method (transformers' data collators are such), but torch's modules
    # can all be called, the lists of them as well.
    return callable(method) and not isinstance(method, nn.Module)


def listed(names: list[str], is_method: Mapping[str, bool]) -> str:
    """Name members in a sentence."""
    return ", ".join(f"{name}()" if is_method[name] else name for name in names)

"""A configuration as it is written down: everything replaced by its value but what is secret."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

from omegaconf import OmegaConf
from omegaconf.resolvers import oc

from gitllm_plugin.secret_values import is_secret

_NO_DEFAULT = object()


def without_secrets(node: Any) -> Any:
    """Resolve a node, but leave ``${oc.env:HF_TOKEN}`` and its like as they are, see :func:`is_secret`.

    What refers to them, in parts or by other keys, refers to the environment in the end. Read again by OmegaConf it is
    the configuration that it was.

    Args:
        node: of OmegaConf's.

    Returns:
        plain dictionaries, lists and values.

    Raises:
        omegaconf.errors.OmegaConfBaseException: what cannot be resolved, as everywhere else.
    """
    with _named(_variable, "oc.env", oc.env), _named(_decoded, "oc.decode", oc.decode):
        return OmegaConf.to_container(node, resolve=True)


def secret_keys(node: Any) -> set[str]:
    """Name the keys of a node whose texts refer to what is secret."""
    if not OmegaConf.is_dict(node):
        return set()
    written: Any = without_secrets(node)
    values: Any = OmegaConf.to_container(node, resolve=True)
    return {str(key) for key, value in values.items() if isinstance(value, str | list) and value != written[key]}


@contextmanager
def _named(resolver: Callable[..., Any], name: str, usual: Callable[..., Any]) -> Iterator[None]:
    """Let a resolver of OmegaConf's be another inside the block."""
    register: Any = OmegaConf.register_resolver
    if "replace" not in signature(register).parameters:  # before 2.4 another, older function had the name
        register = OmegaConf.register_new_resolver
    register(name, resolver, replace=True)
    try:
        yield
    finally:
        register(name, usual, replace=True)


def _variable(key: str, default: Any = _NO_DEFAULT) -> Any:
    given = () if default is _NO_DEFAULT else (default,)
    value = oc.env(key, *given)  # what is missing is an error here too
    if not is_secret(key):
        return value
    if not given:
        return f"${{oc.env:{key}}}"
    quoted = "null" if default is None else "'{}'".format(str(default).replace("'", r"\'"))
    return f"${{oc.env:{key},{quoted}}}"


def _decoded(expr: Any, _parent_: Any, _node_: Any) -> Any:
    # A number that is read of a variable is one again when the file is read.
    if isinstance(expr, str) and expr.startswith("${oc.env:"):
        return f"${{oc.decode:{expr}}}"
    return oc.decode(expr, _parent_, _node_)

"""Reading a configuration's YAML: whatever the file holds ends in the configuration or in one error that says why not.

Aliases let a file of a few lines stand for more than a machine holds, or for itself, and OmegaConf follows them all.
So it gets a file whose size was counted before.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.host.interpolations import check_interpolations

MOST_BYTES = 1_000_000
MOST_VALUES = 100_000
MOST_DEPTH = 40

_WAYS_TO_FAIL = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, MemoryError)
"""What PyYAML raises besides its own errors, for tags that do not fit their text (``!!int x``) and for depth."""


def unreadable() -> tuple[type[Exception], ...]:
    """List what YAML and OmegaConf raise for text that they cannot read."""
    import yaml
    from omegaconf.errors import OmegaConfBaseException

    return (yaml.YAMLError, OmegaConfBaseException, *_WAYS_TO_FAIL)


def load_config(path: Path, what: str = "the sections model, datasets, run, each a mapping") -> Any:
    """Load a file as OmegaConf's mapping.

    Args:
        path: the file.
        what: it has to hold, for the message.

    Raises:
        ConfigError: it cannot be read, is no YAML, is too large or too deep, refers to itself, holds no mapping, or its
            interpolations make too much of it.
    """
    from omegaconf import OmegaConf

    text = _read(path)
    try:
        config = OmegaConf.create(text) if holds_a_mapping(text) else None
        if config:
            check_interpolations(OmegaConf.to_container(config, resolve=False))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except unreadable() as error:
        raise ConfigError(f"{path} is not a YAML file that can be read: {why(error)}") from error
    if not config:
        raise ConfigError(f"{path} must hold {what}")
    return config


def resolve(config: Any, source: str | Path) -> Any:
    """Turn a configuration into plain dictionaries, interpolations (``${run.seed}``) replaced by their values.

    Raises:
        ConfigError: one refers to nothing, or they would make too much of it; names ``source``.
    """
    from omegaconf import OmegaConf

    try:
        check_interpolations(OmegaConf.to_container(config, resolve=False))
        return OmegaConf.to_container(config, resolve=True)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
    except unreadable() as error:
        raise ConfigError(f"{source}: {why(error)}") from error


def holds_a_mapping(text: str) -> bool:
    """Look at YAML without making values of it.

    Raises:
        ConfigError: it stands for more than a configuration is.
        YAMLError: it is no YAML.
    """
    import yaml

    # OmegaConf's: libyaml reads some texts, such as "{a: why?}", that PyYAML's own parser does not.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    _check_depth(yaml.parse(text, Loader=loader))
    root = yaml.compose(text, Loader=loader)
    if root is not None:
        _count(root, {}, set(), 0)
    return isinstance(root, yaml.MappingNode)


def _check_depth(events: Iterator[Any]) -> None:
    """Refuse before nodes are made of nodes, which is done in C without an end."""
    depth = 0
    for event in events:
        kind = type(event).__name__
        depth += kind.endswith("StartEvent") - kind.endswith("EndEvent")
        # Two are the stream's and the document's own.
        if depth - 2 > MOST_DEPTH:
            raise ConfigError(f"it is nested more than {MOST_DEPTH} deep (line {event.start_mark.line + 1})")


def why(error: Exception) -> str:
    """Put in words what was raised."""
    return "it is nested too deeply" if isinstance(error, RecursionError) else f"{error}" or type(error).__name__


def _read(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > MOST_BYTES:
        raise ConfigError(f"{path} has more than {MOST_BYTES} bytes, too many for a configuration")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a YAML file that can be read: its text is not UTF-8 ({error})") from error


def _inside(node: Any) -> Iterator[Any]:
    for each in node.value if isinstance(node.value, list) else ():
        yield from each if isinstance(each, tuple) else (each,)


def _count(node: Any, sizes: dict[int, int], above: set[int], depth: int) -> int:
    """Count the values that a node stands for, each alias as often as it is used."""
    if id(node) in above:
        line = node.start_mark.line + 1
        raise ConfigError(f"what begins in line {line} refers to itself by an alias, and would have no end")
    if depth > MOST_DEPTH:
        raise ConfigError(f"it is nested more than {MOST_DEPTH} deep (line {node.start_mark.line + 1})")
    if id(node) not in sizes:
        above.add(id(node))
        sizes[id(node)] = 1 + sum(_count(each, sizes, above, depth + 1) for each in _inside(node))
        above.remove(id(node))
    if sizes[id(node)] > MOST_VALUES:
        raise ConfigError(f"its aliases make more than {MOST_VALUES} values of it; a configuration has fewer")
    return sizes[id(node)]

"""Nodes of a configuration: declared once as a class, read, and checked with all faults at once.

A node is a dataclass. A field's type says what its key may hold, its default what a missing key means, and the text
below it what the key is for; the check, the reference of the documentation and the class in Python all follow from it.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import pydantic
from pydantic import ConfigDict
from typing_extensions import dataclass_transform

from gitllm_plugin.config.values import DefaultIs, cut_long_words, did_you_mean, explain, fit, shown
from gitllm_plugin.errors import ConfigError

T = TypeVar("T")
_STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True, strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Rule:
    """What several keys together, or a key and the machine, have to keep.

    Attributes:
        keys: what is looked at: keys of the node, or dotted names of what is known beside it (``run.device``,
            ``training``, see :func:`check`). Where one of them is wrong or not known, the rule is not asked.
        fault: gets their values; gives what is wrong, or None. Before a text that goes on where the node's path ends
            (with a dot and a key, a colon or a space) that path is put; any other names the place itself.
    """

    keys: tuple[str, ...]
    fault: Callable[..., str | Iterable[str] | None]


@dataclass(frozen=True)
class ReadIf:
    """In a field's type: when the key's value is read at all. A value that is given elsewhere is told of.

    Attributes:
        keys: as in :class:`Rule`.
        holds: gets their values; whether this key is read.
        meaning: the same in words, behind "it is read only ...".
    """

    keys: tuple[str, ...]
    holds: Callable[..., bool]
    meaning: str


@dataclass(frozen=True)
class Key:
    """What a declaration says of a key, for the documentation.

    Attributes:
        name: of the key.
        default: :data:`MISSING` where the key has to be given.
        stands: what stands for a missing key in words, where ``default`` is not it; else None.
        allowed: its values in words.
        meaning: one or two sentences.
        read: None, or the condition on which it is read.
        nested: the node that its value is, or whose names its value holds.
    """

    name: str
    default: Any
    stands: str | None
    allowed: str
    meaning: str
    read: str | None
    nested: type | None


MISSING: Any = dataclasses.MISSING


@dataclass
class Checked:
    """What :func:`check` found of a node.

    Attributes:
        values: by key, those that are right, as their types; a missing key has its default.
        faults: what is wrong, a line or more each.
        notes: values that are given and have no effect.
    """

    values: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass_transform(frozen_default=True, kw_only_default=True)
def node(where: str) -> Callable[[type[T]], type[T]]:
    """Make a class the declaration of a node: a frozen dataclass whose values are checked and made of their types.

    Made in Python, it raises a ConfigError with the text that the check of a file gives. ``RULES``, where a class or a
    base has some, is a tuple of :class:`Rule`.

    Args:
        where: dotted path of the node in a configuration, for messages.
    """

    def declare(cls: type[T]) -> type[T]:
        made: Any = pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=_STRICT)(cls)
        made.WHERE = where
        build = made.__init__

        @functools.wraps(build)
        def init(self: Any, **given: Any) -> None:
            build(self, **_valid(type(self), type(self).WHERE, given))

        # pydantic's own would raise a ValidationError, which no caller of this package waits for.
        made.__init__ = init
        return made

    return declare


def read(settings: type[T], where: str, given: Mapping[str, Any] | None, closed: bool = True, what: str = "Keys") -> T:
    """Read a node.

    Args:
        settings: its declaration.
        where: its dotted path, for messages.
        given: its values: a dictionary, or a mapping of OmegaConf's. Null means the default.
        closed: whether a key that is not declared is a fault; else it is another class's.
        what: what the keys are called where one is unknown.

    Raises:
        ConfigError: naming everything that is wrong.
    """
    return settings(**_valid(settings, where, given or {}, closed, what))


def changed(settings: T, **changes: Any) -> T:
    """Copy with other values; a wrong one raises what making it would."""
    return dataclasses.replace(cast(Any, settings), **changes)


def check(
    settings: type | Sequence[type],
    where: str,
    given: Mapping[str, Any],
    *,
    closed: bool = True,
    known: Mapping[str, Any] = types.MappingProxyType({}),
    defaults: Mapping[str, Any] = types.MappingProxyType({}),
    what: str = "Keys",
) -> Checked:
    """Check a node against its declaration.

    Args:
        settings: the declaration, or those of several classes that read the same node.
        where: the node's dotted path, for messages.
        given: the values that a user gave.
        closed: whether a key that none declares is a fault.
        known: what is known beside the node and rules may ask for, by dotted name.
        defaults: values that stand where none is given, in the place of the declaration's: a model type's.
        what: what the keys are called where one is unknown.
    """
    declared = [settings] if isinstance(settings, type) else list(settings)
    found = Checked()
    given, defaults = plain(given), plain(defaults)
    if closed:
        keys = {name for each in declared for name in fields_of(each)}
        found.faults += [unknown_key(where, key, keys, what) for key in given if key not in keys]
    # What a class has of another that is asked too, it may say better: the device's names, a default.
    declared = [each for each in declared if not any(issubclass(o, each) for o in declared if o is not each)]
    wrong = {name for each in declared for name in _check_fields(each, where, given, defaults, known, found)}
    # Of two classes that declare a key, one may have found it right.
    found.values = {name: value for name, value in found.values.items() if name not in wrong}
    for each in declared:
        _ask_rules(each, where, {**known, **found.values}, found.faults)
        _ask_effects(each, where, given, {**known, **found.values}, found)
    # Two classes may declare a key that both read, such as `evaluate`: one complaint is enough.
    found.faults = [cut_long_words(fault) for fault in found.faults]
    found.faults, found.notes = list(dict.fromkeys(found.faults)), list(dict.fromkeys(found.notes))
    return found


def describe(settings: type) -> list[Key]:
    """List what a declaration says of its keys, in their order."""
    return [
        Key(
            name,
            _default_of(settings, name),
            next((data.words for data in _metadata(hint) if isinstance(data, DefaultIs)), None),
            "a mapping, see below" if _nested(hint)[0] else explain(hint),
            _meaning_of(settings, name),
            next((data.meaning for data in _metadata(hint) if isinstance(data, ReadIf)), None),
            _nested(hint)[0],
        )
        for name, hint in fields_of(settings).items()
    ]


@functools.cache
def fields_of(settings: type) -> dict[str, Any]:
    """List the types of a declaration's fields, with what is annotated."""
    hints = get_type_hints(settings, include_extras=True)
    return {name: hints[name] for name in cast(Any, settings).__dataclass_fields__}


def unknown_key(where: str, key: Any, known: Collection[str], what: str = "Keys") -> str:
    """Say that nothing reads a key, with its nearest name and all that there are."""
    place = f"{where}.{key}" if where else key
    listed = ", ".join(sorted(known)) or "none"
    return f"{place}: unknown key '{key}'{did_you_mean(key, known)}. {what} there are: {listed}"


def plain(value: Any) -> Any:
    """Turn a value, OmegaConf's for one, into dictionaries and lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(value[key]) for key in value}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [plain(item) for item in value]
    return value


def _valid(
    settings: type, where: str, given: Mapping[str, Any], closed: bool = True, what: str = "Keys"
) -> dict[str, Any]:
    found = check(settings, where, given, closed=closed, what=what)
    if found.faults:
        raise ConfigError("\n".join(found.faults))
    return found.values


def _check_fields(
    settings: type,
    where: str,
    given: Mapping[str, Any],
    defaults: Mapping[str, Any],
    known: Mapping[str, Any],
    found: Checked,
) -> set[str]:
    """Fill in ``found`` what is right, and return the names of the fields that are wrong."""
    faulty = set()
    for name, hint in fields_of(settings).items():
        place = f"{where}.{name}"
        default = _default_of(settings, name)
        value = given.get(name)
        # Null stands for the default, but where a type knows none ("lora: null"), and a model type's default is not it.
        if value is None and name in defaults and not (name in given and _may_be_none(hint)):
            value = defaults[name]
        elif isinstance(value, Mapping) and isinstance(defaults.get(name), Mapping):
            value = _merged(defaults[name], value)
        if value is None:
            if name in given and _may_be_none(hint):
                found.values[name] = None
            elif default is MISSING:
                found.faults.append(f"{place} is missing, expected {explain(hint)}")
                faulty.add(name)
            else:
                found.values[name] = default
            continue
        inner, many = _nested(hint)
        wrong = len(found.faults)
        if inner is not None:
            value = _check_nested(inner, many, hint, place, value, known, found)
        else:
            value, faults = fit(hint, place, value)
            found.faults += faults
        if len(found.faults) == wrong:
            found.values[name] = value
        else:
            faulty.add(name)
    return faulty


def _check_nested(
    inner: type, many: bool, hint: Any, place: str, value: Any, known: Mapping[str, Any], found: Checked
) -> Any:
    """The value of a key that holds a node, or nodes by name."""
    if isinstance(value, inner):
        return value
    if not isinstance(value, Mapping):
        found.faults.append(
            f"{place} is {shown(value)}, expected a mapping{_with_keys(() if many else fields_of(inner))}"
        )
        return value
    if not many:
        checked = check(inner, place, value, known=known)
        found.faults += checked.faults
        found.notes += checked.notes
        return value if checked.faults else inner(**checked.values)
    nodes = {}
    for name, each in value.items():
        _, wrong = fit(_key_hint(hint), place, name)
        names = get_args(_key_hint(hint)) if get_origin(_key_hint(hint)) is Literal else ()
        found.faults += [unknown_key(place, name, names)] if wrong and names else wrong
        if each is not None and not wrong:
            nodes[name] = _check_nested(inner, False, inner, f"{place}.{name}", each, known, found)
    return nodes


def _with_keys(keys: Iterable[str]) -> str:
    keys = ", ".join(keys)
    return f" with the keys {keys}" if keys else ""


def _ask_rules(settings: type, where: str, values: Mapping[str, Any], found: list[str]) -> None:
    for rule in (rule for base in settings.__mro__ for rule in vars(base).get("RULES", ())):
        if all(key in values for key in rule.keys):
            said = rule.fault(*(values[key] for key in rule.keys))
            for text in [said] if isinstance(said, str) else said or ():
                found.append(f"{where}{text}" if text.startswith((".", ":", " ")) else text)


def _ask_effects(
    settings: type, where: str, given: Mapping[str, Any], values: Mapping[str, Any], found: Checked
) -> None:
    for name, hint in fields_of(settings).items():
        # What the default says too makes no difference.
        if given.get(name) is None or name not in found.values or values[name] == _default_of(settings, name):
            continue
        for data in _metadata(hint):
            if isinstance(data, ReadIf) and all(key in values for key in data.keys):
                asked = [values[key] for key in data.keys]
                if not data.holds(*asked):
                    own = [
                        f", and {key} is {value!r}"
                        for key, value in zip(data.keys, asked, strict=True)
                        if "." not in key
                    ]
                    found.notes.append(
                        f"{where}.{name} is {shown(given[name])}, which has no effect: it is read only {data.meaning}"
                        + "".join(own)
                    )


def _nested(hint: Any) -> tuple[type | None, bool]:
    """Find the node that a type holds, if any, and whether it holds several by name."""
    bare = _bare(hint)
    if isinstance(bare, type) and hasattr(bare, "WHERE"):
        return bare, False
    if get_origin(bare) is dict:
        return _nested(get_args(bare)[1])[0], True
    if get_origin(bare) in (Union, types.UnionType):
        found = [_nested(member) for member in get_args(bare)]
        return next(((inner, many) for inner, many in found if inner), (None, False))
    return None, False


def _key_hint(hint: Any) -> Any:
    """Find the type of the names in a mapping, which may also be null."""
    members = get_args(_bare(hint)) if get_origin(_bare(hint)) in (Union, types.UnionType) else [hint]
    return next(get_args(_bare(member))[0] for member in members if get_origin(_bare(member)) is dict)


def _bare(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _metadata(hint: Any) -> tuple[Any, ...]:
    return get_args(hint)[1:] if get_origin(hint) is Annotated else ()


def _may_be_none(hint: Any) -> bool:
    return type(None) in get_args(_bare(hint))


def _default_of(settings: type, name: str) -> Any:
    return cast(Any, settings).__dataclass_fields__[name].default


def _meaning_of(settings: type, name: str) -> str:
    """Find the text below a field, which pydantic keeps at the class that declares it and not at derived ones."""
    for base in settings.__mro__:
        found = getattr(base, "__pydantic_fields__", {}).get(name)
        if found is not None and found.description:
            return inspect.cleandoc(found.description).replace("\n", " ")
    return ""


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        inside = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if inside else value
    return merged

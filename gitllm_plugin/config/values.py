"""One value of a configuration: made of its type, or told what is allowed in its place."""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import ConfigDict, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError, core_schema

_STRICT = ConfigDict(strict=True, allow_inf_nan=False)
_BOUNDS = {
    "minimum": "{} or more",
    "exclusiveMinimum": "above {}",
    "maximum": "{} or less",
    "exclusiveMaximum": "below {}",
}
_OUT_OF_BOUNDS = ("greater_than_equal", "greater_than", "less_than_equal", "less_than")
_MOST = 2**63 - 1
_MOST_SHOWN = 300
_MOST_IN_A_WORD = 1000
_TYPES = {
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "array": "a list",
    "object": "a mapping",
}


_MANY = {"text": "texts", "a number": "numbers", "a whole number": "whole numbers"}


@dataclass(frozen=True)
class Says:
    """In a field's type: what may be given, in words, where the type cannot say it well.

    Attributes:
        words: behind "expected".
    """

    words: str


@dataclass(frozen=True)
class DefaultIs:
    """In a field's type: what stands for a missing key, where the class cannot say it: a file does, or a rule refuses.

    Attributes:
        words: for the documentation.
    """

    words: str


@dataclass(frozen=True, eq=False)  # types are kept by their hash, which a mapping of names has not
class OneOf:
    """In a field's type, of text: the names that are allowed, looked up when they are needed.

    Attributes:
        names: all that there are; a mapping that grows later is looked at then.
        what: what they are names of, for the message; empty where the key says it.
    """

    names: Collection[str]
    what: str = ""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return {**handler(schema), "enum": list(self.names)}

    def _check(self, value: str) -> str:
        if value in self.names:
            return value
        if not self.what:
            raise PydanticCustomError("literal_error", "unknown name")
        near = nearest(value, self.names)
        hint = f"; did you mean '{near}'?" if near else ""
        raise ValueError(f"unknown {self.what} {shown(value)}; there are: {', '.join(self.names)}{hint}")


def unexpected() -> Exception:
    """Make what a validator raises where the words of :class:`Says` tell what is wrong."""
    return PydanticCustomError("unexpected", "not allowed")


def fit(hint: Any, place: str, value: Any) -> tuple[Any, list[str]]:
    """Make a value of its type.

    Numbers may be written as text: to YAML, ``1e-3`` is text.

    Args:
        hint: the type, with what is annotated.
        place: dotted path of the key.
        value: as it was given, not null.

    Returns:
        The value, and what is wrong with it; with faults, the value means nothing.
    """
    adapter, schema = _adapter(hint)
    try:
        # As JSON: a list may become a tuple there, and nothing else becomes what it is not (no "yes" a bool).
        fitted = adapter.validate_json(json.dumps(_numbers(value, schema), default=_path_as_text), strict=True)
    except (TypeError, ValueError) as error:
        if isinstance(error, ValidationError):
            return value, list(dict.fromkeys(_faults(hint, place, value, error, schema)))
        # No text, number, list, mapping or path, such as bytes; or thousands of digits.
        return value, [f"{place} is {shown(value)}, expected {explain(hint)}"]
    beyond = _beyond(fitted)
    return fitted, [f"{place} is {shown(value)}, expected {explain(hint)}, and {beyond}"] if beyond else []


def shown(value: Any) -> str:
    """Show a value in a message: as Python writes it, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no more digits than 4300
        return "a number of thousands of digits"
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}... ({len(text)} characters)"


def cut_long_words(message: str) -> str:
    """Shorten words that no reader wants whole, such as a path of thousands of letters."""
    return re.sub(rf"\S{{{_MOST_IN_A_WORD},}}", lambda word: f"{word[0][:_MOST_SHOWN]}...", message)


def _beyond(value: Any) -> str | None:
    """Say what no key can hold, whatever its type allows: numbers that neither torch nor a file can, and NUL."""
    if isinstance(value, Mapping):
        return next((said for each in (*value, *value.values()) if (said := _beyond(each))), None)
    if isinstance(value, (list, tuple)):
        return next((said for each in value if (said := _beyond(each))), None)
    if isinstance(value, (int, float)):
        return None if abs(value) <= _MOST else f"no number beyond {_MOST}"
    return "no NUL in a text" if isinstance(value, str) and "\0" in value else None


def nearest(given: Any, known: Iterable[Any]) -> str | None:
    """Find the name that was probably meant; None where none is near."""
    return next(iter(difflib.get_close_matches(str(given), [str(name) for name in known], n=1)), None)


def did_you_mean(given: Any, known: Iterable[Any]) -> str:
    """Ask for the nearest name, in brackets to stand behind the one that was given; empty where none is near."""
    near = nearest(given, known)
    return f" (did you mean '{near}'?)" if near else ""


def explain(hint: Any) -> str:
    """Put in words what a type allows."""
    says = _says(hint)
    return says if says is not None else _words(_adapter(hint)[1])


def _path_as_text(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} is nothing that a configuration can hold")


@functools.cache
def _adapter(hint: Any) -> tuple[TypeAdapter, dict[str, Any]]:
    adapter = TypeAdapter(hint, config=_STRICT)
    return adapter, adapter.json_schema()


def _says(hint: Any) -> str | None:
    if get_origin(hint) in (Union, UnionType):
        others = [member for member in get_args(hint) if member is not type(None)]
        return _says(others[0]) if len(others) == 1 else None
    metadata = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return next((data.words for data in metadata if isinstance(data, Says)), None)


def _members(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """List the alternatives of a schema but null."""
    return [member for member in schema.get("anyOf", [schema]) if member.get("type") != "null"]


def _numbers(value: Any, schema: Mapping[str, Any]) -> Any:
    """Put numbers in the place of their texts, where numbers are allowed and any text is not."""
    members = _members(schema)
    kinds = {member.get("type") for member in members if "enum" not in member and "const" not in member}
    if isinstance(value, (str, float)) and kinds & {"integer", "number"} and "string" not in kinds:
        return _number(value, whole="number" not in kinds)
    for member in members:
        if isinstance(value, list) and member.get("type") == "array":
            inner = [*member.get("prefixItems", ())][: len(value)] or [member.get("items", {})] * len(value)
            return [_numbers(item, each) for item, each in zip(value, inner, strict=False)] + value[len(inner) :]
        if isinstance(value, dict) and member.get("type") == "object":
            inside = member.get("additionalProperties", {})
            return {key: _numbers(each, inside) if isinstance(inside, dict) else each for key, each in value.items()}
    return value


def _number(value: str | float, whole: bool) -> Any:
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return value
    return int(number) if whole and number.is_integer() else number


def _faults(hint: Any, place: str, value: Any, error: ValidationError, schema: Mapping[str, Any]) -> Iterable[str]:
    members, errors = _members(schema), error.errors(include_url=False)
    told = [each for each in errors if each["type"] == "value_error"]
    if told:
        yield from (f"{place}: {each.get('ctx', {}).get('error')}" for each in told)
    elif _says(hint) is not None:
        yield f"{place} is {shown(value)}, expected {_says(hint)}"
    elif len(members) > 1:
        # Every alternative complains; of a number that is out of bounds the bound is what matters.
        close = any(each["type"] in _OUT_OF_BOUNDS for each in errors)
        words = [close and _bounds(member) or _words(member) for member in members]
        yield f"{place} is {shown(value)}, expected {_either(words)}"
    else:
        for each in errors:
            yield _fault(place, value, each, members[0])


def _fault(place: str, value: Any, error: Any, schema: Mapping[str, Any]) -> str:
    """Say what is wrong with a value, a list's item or a mapping's entry."""
    is_inside = False
    for step in error["loc"]:
        if step == "[key]":
            known = [str(name) for name in schema.get("propertyNames", {}).get("enum", ())]
            near = did_you_mean(error["input"], known)
            return f"{place}: unknown key '{error['input']}'{near}. Keys there are: {', '.join(known)}"
        if isinstance(value, Mapping) and step in value:
            place, value = f"{place}.{step}", value[step]
            schema = schema if _is_key_error(error) else _members(schema.get("additionalProperties", {}))[0]
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            inner = schema.get("prefixItems", ())
            schema = inner[step] if step < len(inner) else schema.get("items", {})
            value, is_inside = value[step], True
    verb = "has" if is_inside else "is"
    if error["type"] in _OUT_OF_BOUNDS:
        return f"{place} {verb} {shown(value)}, expected {_bounds(schema)}"
    near = did_you_mean(value, schema.get("enum", ())) if error["type"] == "literal_error" else ""
    return f"{place} {verb} {shown(value)}, expected {_words(schema)}{near}"


def _is_key_error(error: Any) -> bool:
    return error["loc"][-1:] == ("[key]",)


def _words(schema: Mapping[str, Any]) -> str:
    members = _members(schema)
    if len(members) != 1:
        return _either([_words(member) for member in members]) if members else "null"
    schema = members[0]
    if "const" in schema or "enum" in schema:
        names = [str(name) for name in schema.get("enum", [schema.get("const")])]
        return f"one of {', '.join(names)}" if len(names) > 1 else names[0]
    word = _TYPES.get(schema.get("type", ""), "a value")
    if bounds := _bounds(schema):
        word += f", {bounds}"
    if schema.get("minLength"):
        word += " that is not empty"
    if "prefixItems" in schema:
        return f"a list of {len(schema['prefixItems'])}: {_words(schema['prefixItems'][0])} each"
    if "items" in schema:
        items = _words(schema["items"])
        return f"a list of {_MANY.get(items, items.removeprefix('one of '))}"
    if isinstance(schema.get("additionalProperties"), Mapping) and schema["additionalProperties"]:
        names = schema.get("propertyNames", {}).get("enum")
        return f"a mapping from {', '.join(names) if names else 'names'} to {_words(schema['additionalProperties'])}"
    return word


def _bounds(schema: Mapping[str, Any]) -> str:
    return " and ".join(text.format(_digits(schema[key])) for key, text in _BOUNDS.items() if key in schema)


def _digits(bound: float) -> str:
    # Whole in full: rounded, a large bound would allow what is refused.
    return f"{bound:.0f}" if float(bound).is_integer() else f"{bound:g}"


def _either(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])}, or {words[-1]}"

"""Conversations in JSON: LLaVA's and ShareGPT's ``conversations``, and ``messages`` as chat endpoints have them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gitllm_plugin.config.model import IMAGE_MARK
from gitllm_plugin.m3it.from_table.records import Record
from gitllm_plugin.m3it.marks import with_marks
from gitllm_plugin.m3it.problems import RowError
from gitllm_plugin.m3it.rows import describe

KEYS = ("conversations", "messages", "texts")
"""Under which a row has its turns: in ``from`` and ``value``, in ``role`` and ``content``, or in pairs of ``user`` and
``assistant``, as the data sets of the Cauldron have them."""

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_PAIR = ("user", "assistant")
_IMAGE_KEYS = ("image", "images")
_READ = (*KEYS, *_IMAGE_KEYS, "id", "split", "instruction")
_PLACE = re.compile(rf"\s*{IMAGE_MARK}\s*")
"""Where an image stands in a text."""


def is_conversation(entry: Mapping[str, Any]) -> bool:
    """Tell whether a row is a conversation and no question with its answer."""
    return any(isinstance(entry.get(key), list) and _are_turns(key, entry[key]) for key in KEYS)


def _are_turns(key: str, turns: Sequence[Any]) -> bool:
    return key != "texts" or all(isinstance(turn, Mapping) and {*_PAIR} <= turn.keys() for turn in turns)


def unread_keys(entry: Mapping[str, Any]) -> list[str]:
    """List what of a row is not read."""
    return [key for key in entry if key not in _READ]


def read_conversation(entry: Mapping[str, Any], number: int, place: str, keeps_marks: bool = False) -> Record:
    """Read a row; the first question and answer are its own, and ``turns`` are the rest.

    Args:
        entry: with one of :data:`KEYS`; ``image`` or ``images``; optionally ``id``, ``split`` and ``instruction``.
        number: of the row.
        place: for messages.
        keeps_marks: whether ``<image>`` stays in the texts, and may stand in any of the user's turns; else all images
            are in front.

    Raises:
        RowError: user and assistant do not take turns, or images stand elsewhere than in the first question.
    """
    key = next(key for key in KEYS if isinstance(entry.get(key), list) and _are_turns(key, entry[key]))
    turns = entry[key]
    if key == "texts":
        turns = [{"role": role, "content": turn[role]} for turn in turns for role in _PAIR]
    said, images, marks = _read_turns(turns, key, place, keeps_marks)
    system = " ".join(text for role, text in said if role == "system")
    talk = [(role, text) for role, text in said if role != "system"]
    roles = [role for role, _ in talk]
    if not talk or roles != ["user", "assistant"] * (len(talk) // 2):
        raise RowError(
            "wrong_value",
            f"{key!r} has the turns {_shown(roles)}, expected user and assistant, one after another, the user first "
            "and the assistant last; remove the row, or join what one says at a time",
            place,
        )
    given = next((entry[name] for name in _IMAGE_KEYS if entry.get(name) is not None), None)
    listed = list(given) if isinstance(given, list) else [] if given is None else [given]
    if listed and images:
        raise RowError("wrong_value", "images stand both beside the turns and in them; leave one of the two out", place)
    shown = listed or images
    if marks and marks != len(shown):
        raise RowError("wrong_value", f"the text has {marks} times <image>, and the row {len(shown)} images", place)
    turns = [[talk[n][1], talk[n + 1][1]] for n in range(0, len(talk), 2)]
    cells = {
        "image": shown,
        "question": turns[0][0],
        "answer": [turns[0][1]],
        "instruction": entry.get("instruction") or system or None,
        "id": entry.get("id"),
        "split": entry.get("split"),
        "turns": turns[1:],
    }
    return Record(str(number), place, cells)


def _read_turns(
    turns: Sequence[Any], key: str, place: str, keeps_marks: bool
) -> tuple[list[tuple[str, str]], list[Any], int]:
    """Read roles and texts; images that stand in them, and how often a text says where one stands."""
    said: list[tuple[str, str]] = []
    images: list[Any] = []
    marks = 0
    for number, turn in enumerate(turns, start=1):
        where = f"turn {number} of {key!r}"
        if not isinstance(turn, Mapping):
            raise RowError("wrong_value", f"{where} is {describe(turn)}, expected an object", place)
        name = next((turn[name] for name in ("from", "role") if name in turn), None)
        role = _ROLES.get(name) if isinstance(name, str) else None
        if role is None:
            known = ", ".join(_ROLES)
            raise RowError("wrong_value", f"{where} is said by {describe(name)}, expected one of {known}", place)
        content = next((turn[name] for name in ("value", "content") if name in turn), None)
        text, shown = _read_content(content, where, place, keeps_marks)
        found = len(_PLACE.findall(text))
        first = role == "user" and not any(before == "user" for before, _ in said)
        if (found or shown) and not (first or keeps_marks and role == "user"):
            raise RowError(
                "wrong_value",
                f"{where} has an image, and images are shown by the user"
                if role != "user"
                else f"{where} has an image; images stand in front of a conversation here, so they belong into the "
                "first question; for a model of image_places: text, give --image-places text",
                place,
            )
        marks += found
        images += shown
        said.append((role, text.strip() if keeps_marks else _PLACE.sub(" ", text).strip()))
        if not said[-1][1] and (role == "assistant" or any(before == "user" for before, _ in said[:-1])):
            raise RowError("empty_answer" if role == "assistant" else "wrong_value", f"{where} is empty", place)
    return said, images, marks


def _read_content(content: Any, where: str, place: str, keeps_marks: bool) -> tuple[str, list[Any]]:
    """Read a turn's text, or a list of parts, of which each is a text or an image."""
    if isinstance(content, str):
        return content, []
    texts: list[str | None] = []
    images = []
    for part in content if isinstance(content, list) else [content]:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "image" and any(part.get(key) for key in ("image", "path", "bytes")):
            # In a table of Arrow all parts have all keys, those of others being null.
            images.append(part.get("image") or (part if part.get("bytes") else part["path"]))
            texts += [None] * keeps_marks
        elif kind == "image":
            texts.append(None if keeps_marks else IMAGE_MARK)
        else:
            raise RowError(
                "wrong_value",
                f"{where} has {describe(part)}, expected text, or parts of the types text and image (a file's path)",
                place,
            )
    return with_marks(texts, " "), images


def _shown(roles: Sequence[str]) -> str:
    return ", ".join(roles[:8]) + (", ..." if len(roles) > 8 else "") if roles else "none"

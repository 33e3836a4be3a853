"""Conversations with two ends, of which one is better, as TRL has them: ``prompt``, ``chosen``, ``rejected``."""

from collections.abc import Mapping
from typing import Any

from gitllm_plugin.m3it.from_table.conversations import read_conversation, unread_keys
from gitllm_plugin.m3it.from_table.records import Record
from gitllm_plugin.m3it.problems import RowError

_KEYS = ("prompt", "chosen", "rejected")


def is_preference(entry: Mapping[str, Any]) -> bool:
    """Tell whether a row has two ends of a conversation, and is no row of a table with such columns."""
    has_both = entry.get("chosen") is not None and entry.get("rejected") is not None
    return has_both and (entry.get("prompt") is not None or isinstance(entry["chosen"], list))


def unread_of_preference(entry: Mapping[str, Any]) -> list[str]:
    """List what of a row is not read."""
    return [key for key in unread_keys(entry) if key not in _KEYS]


def read_preference(entry: Mapping[str, Any], number: int, place: str, keeps_marks: bool = False) -> Record:
    """Read a row; it is about the conversation's last answer.

    Args:
        entry: ``chosen`` and ``rejected``, each a text or a list of turns, and ``prompt``, likewise; without it both
            are whole conversations that begin alike. The rest as for
            :func:`gitllm_plugin.m3it.from_table.conversations.read_conversation`.
        number: of the row.
        place: for messages.
        keeps_marks: as there.

    Raises:
        RowError: an end is not one turn of the assistant's, both are the same, or the conversation cannot be read.
    """
    chosen, rejected = (_turns(entry[key], "assistant") for key in ("chosen", "rejected"))
    if entry.get("prompt") is not None:
        prompt = _turns(entry["prompt"], "user")
    else:
        pairs = list(zip(chosen, rejected, strict=False))
        same = next((n for n, (one, other) in enumerate(pairs) if one != other), len(pairs))
        prompt, chosen, rejected = chosen[:same], chosen[same:], rejected[same:]
    for key, end in (("chosen", chosen), ("rejected", rejected)):
        if len(end) != 1:
            raise RowError(
                "wrong_value",
                f"{key!r} has {len(end)} turns behind what both have in common, expected one, the assistant's",
                place,
            )
    # Read twice by the rules of conversations, which say what is wrong with either.
    rest = {key: value for key, value in entry.items() if key not in _KEYS}
    record, other = (
        read_conversation({**rest, "messages": [*prompt, *end]}, number, place, keeps_marks)
        for end in (chosen, rejected)
    )
    return Record(record.name, record.place, {**record.cells, "rejected": _last_answer(other)})


def _turns(value: Any, role: str) -> list[Any]:
    return list(value) if isinstance(value, list) else [{"role": role, "content": value}]


def _last_answer(record: Record) -> str:
    turns = record.cells["turns"]
    return turns[-1][1] if turns else record.cells["answer"][0]

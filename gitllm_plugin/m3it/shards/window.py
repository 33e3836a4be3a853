"""Bringing texts about the same images together while rows stream by."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from gitllm_plugin.m3it.example import Group, hash_images

WINDOW_BYTES = 64 * 2**20
MAX_TEXTS = 64


@dataclass
class _Waiting:
    key: bytes
    group: Group
    size: int


def join_groups(groups: Iterable[Group], window_bytes: int = WINDOW_BYTES) -> Iterator[Group]:
    """Joins groups that have the same images, where they are not too far from each other.

    Groups wait until more than ``window_bytes`` of images and texts wait; one that comes with the same images in the
    meantime joins the first, up to 64 texts. They come out in the order in which each was first seen. Groups without
    images join none.
    """
    waiting: deque[_Waiting] = deque()
    open_groups: dict[bytes, _Waiting] = {}
    size = 0
    for group in groups:
        key = hash_images(group.images) if group.images else b""
        first = open_groups.get(key) if key else None
        if first is not None and len(first.group.texts) + len(group.texts) <= MAX_TEXTS:
            first.group = replace(first.group, texts=first.group.texts + group.texts)
            added = _text_bytes(group)
            first.size += added
        else:
            added = _text_bytes(group) + sum(map(len, group.images))
            waiting.append(_Waiting(key, group, added))
            open_groups[key] = waiting[-1]
        size += added
        while size > window_bytes:
            oldest = waiting.popleft()
            size -= oldest.size
            if open_groups.get(oldest.key) is oldest:
                del open_groups[oldest.key]
            yield oldest.group
    for last in waiting:
        yield last.group


def _text_bytes(group: Group) -> int:
    """About what a group's texts take in memory."""
    return sum(500 + len(text.question) + sum(map(len, text.answers)) for text in group.texts)

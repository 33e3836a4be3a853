"""Images and the texts about them: what a row becomes, what a record of a shard holds and what an item is made of."""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

ALL_TEXTS = 2**31 - 1
"""More texts than an image has: all of them stand in one item."""

WINDOW_BYTES = 64 * 2**20
MAX_TEXTS = 64
_MARKS_BYTES = 100
"""What a template or a conversation writes around a turn, at most."""


@dataclass(frozen=True)
class Text:
    """What is asked and answered about images.

    Attributes:
        id: unique within a split.
        config: the M3IT configuration that it belongs to, such as ``coco``.
        instruction: what is to be done, in words.
        question: the row's ``inputs``; empty where the instruction says it all, as in captioning.
        answers: the accepted answers, at least one. The first is the one that is trained on.
        turns: of a conversation, the questions and answers before this one, which have the instruction.
        rejected: an answer that the first of ``answers`` is preferred to; None where there is none.
        images: how many of the row's images, the first ones, stand in its words and those before it, where a
            conversation shows others later; None: all, wherever they stand.
    """

    id: str
    config: str
    instruction: str
    question: str
    answers: tuple[str, ...]
    turns: tuple[tuple[str, str], ...] = ()
    rejected: str | None = None
    images: int | None = None


@dataclass(frozen=True)
class Group:
    """The texts about one image or list of images.

    Attributes:
        config: the configuration of the row or record that it was read from. Texts that are put together to an item
            of a data set may be of several; each says its own.
        split: ``train``, ``val`` or ``test``.
        number: unique within configuration and split.
        images: encoded image files (PNG, JPEG, ...), in order; empty for text alone. They become pictures only when
            they are needed (:func:`gitllm_plugin.m3it.images.decode_image`).
        texts: at least one.
    """

    config: str
    split: str
    number: int
    images: tuple[bytes, ...] = field(repr=False)
    texts: tuple[Text, ...]


def hash_images(images: Sequence[bytes]) -> bytes:
    """Return a 16-byte hash of encoded images and their order; zeros where there are none."""
    if not images:
        return bytes(16)
    # The fastest one where processors have it built in. Indexes on disk hold its values: another needs a new version.
    digest = hashlib.sha1(usedforsecurity=False)
    for image in images:
        digest.update(len(image).to_bytes(8, "little"))  # ["ab", "c"] and ["a", "bc"] differ
        digest.update(image)
    return digest.digest()[:16]


def longest_text(texts: Iterable[Text]) -> int:
    """Return the bytes of the longest instruction, answer and turns together: what of a text cannot be shortened."""
    return max(
        len(text.instruction.encode())
        + max(len(answer.encode()) for answer in (*text.answers, text.rejected or ""))
        + sum(_MARKS_BYTES + len(question.encode()) + len(answer.encode()) for question, answer in text.turns)
        for text in texts
    )


def group_by_image(image_keys: Iterable[str], texts_per_image: int) -> list[list[int]]:
    """Group texts by the key of their image, so that a picture is encoded once for several.

    Args:
        image_keys: the key of each text's images, in order. Texts with an empty key have no image, share nothing and
            stay alone.
        texts_per_image: the most texts in one group, at least 1.

    Returns:
        Groups of indices. Each index is in exactly one group; within a group they rise; groups are ordered by their
        first index.
    """
    groups: list[list[int]] = []
    open_group: dict[str, list[int]] = {}
    for index, key in enumerate(image_keys):
        # One that is full is left where it stands, and the next text about its image opens another.
        group = open_group.get(key) if key else None
        if group is not None and len(group) < texts_per_image:
            group.append(index)
        else:
            open_group[key] = [index]
            groups.append(open_group[key])
    return groups


@dataclass
class _Waiting:
    key: bytes
    group: Group
    size: int


def join_groups(groups: Iterable[Group], window_bytes: int = WINDOW_BYTES) -> Iterator[Group]:
    """Join groups that have the same images while rows stream by.

    Rows about one image stand near each other in M3IT's files, so a window finds nearly all of them, and files that do
    not fit in memory can be made to shards.

    Args:
        groups: of one configuration and split.
        window_bytes: how much of images and texts may wait, in bytes.

    Yields:
        The groups in the order in which each was first seen. One that comes with the images of one that still waits
        joins it, up to 64 texts; groups without images join none.
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
            # A group that is full has made room for another one with the same images, which is still open.
            if open_groups.get(oldest.key) is oldest:
                del open_groups[oldest.key]
            yield oldest.group
    # In the order in which they came, as if the window had moved on: slices give the same shards at every making.
    for last in waiting:
        yield last.group


def _text_bytes(group: Group) -> int:
    """Estimate what a group's texts take in memory."""
    return sum(
        500 + len(text.question) + sum(map(len, (*text.answers, text.rejected or "", *sum(text.turns, ()))))
        for text in group.texts
    )

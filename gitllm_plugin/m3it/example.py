"""One instruction, its images, its question and its answers; and the texts that share their images."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Example:
    """One instruction of M3IT with all that it needs.

    Attributes:
        id: unique within a split.
        config: the M3IT configuration that the row belongs to, such as ``coco``.
        instruction: what is to be done, in words.
        question: the row's ``inputs``; empty where the instruction says it all, as in captioning.
        answers: the accepted answers, at least one. The first is the one that is trained on.
        images: encoded image files (PNG, JPEG, ...), in order. They become pictures only when they are needed
            (:func:`gitllm_plugin.m3it.images.decode_image`).
        location: where it was read (``path:line``), for messages. Two examples may be equal that were read
            from different files.
    """

    id: str
    config: str
    instruction: str
    question: str
    answers: tuple[str, ...]
    images: tuple[bytes, ...] = field(repr=False)
    location: str = field(compare=False)


@dataclass(frozen=True)
class Text:
    """What is asked and answered about images: an example without them. Attributes as in Example."""

    id: str
    instruction: str
    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """The texts about one image or list of images.

    Attributes:
        config: the configuration of all texts.
        split: ``train``, ``val`` or ``test``.
        number: unique within configuration and split.
        images: encoded image files, in order; empty for text alone.
        texts: at least one.
    """

    config: str
    split: str
    number: int
    images: tuple[bytes, ...] = field(repr=False)
    texts: tuple[Text, ...]

    def examples(self, location: str) -> list[Example]:
        """The texts as examples, each with the images."""
        return [
            Example(text.id, self.config, text.instruction, text.question, text.answers, self.images, location)
            for text in self.texts
        ]


def hash_images(images: Sequence[bytes]) -> bytes:
    """A 16-byte hash of encoded images and their order; zeros where there are none."""
    if not images:
        return bytes(16)
    digest = hashlib.sha1(usedforsecurity=False)  # the fastest one where processors have it built in
    for image in images:
        digest.update(len(image).to_bytes(8, "little"))  # ["ab", "c"] and ["a", "bc"] differ
        digest.update(image)
    return digest.digest()[:16]

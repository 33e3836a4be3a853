"""One instruction, its images, its question and its answers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """One row of M3IT.

    Attributes:
        id: unique within a split.
        config: the M3IT configuration that the row belongs to, such as ``coco``.
        instruction: what is to be done, in words.
        question: the row's ``inputs``; empty where the instruction says it all, as in captioning.
        answers: the accepted answers, at least one. The first is the one that is trained on.
        images: base64 texts of encoded image files, in order. They are decoded only when they are
            needed (:func:`gitllm_plugin.m3it.images.decode_image`).
        image_key: a hash of ``images``: rows with equal keys show the same pictures. Empty where the row
            has no image.
        location: ``path:line`` of the row, for messages.
    """

    id: str
    config: str
    instruction: str
    question: str
    answers: tuple[str, ...]
    images: tuple[str, ...]
    image_key: str
    location: str

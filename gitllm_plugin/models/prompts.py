"""Prompts in LAVIS's form: templates in which each ``{}`` is a place for something of the batch."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gitllm_plugin.errors import DataError
from gitllm_plugin.modeling.conversation import turns_of
from gitllm_plugin.models.samples import Samples, prompts_of, shortenable_of, words_of

if TYPE_CHECKING:
    from typing_extensions import TypeIs

PLACE = "{}"
MOST_OCR_TOKENS = 30  # as in LAVIS's InstructBLIP


def with_filled_prompts(samples: Samples, default: str, template: str | None = None) -> Samples:
    """Fill the templates of a batch, as LAVIS's instruction-tuned models do.

    A row's places take, in their order: all elements of its ``text_input`` where that is a list; else, of two, its
    ``ocr_tokens`` and its text, or its text and its ``choices``; of one, its text. A text that a processor has made a
    prompt of takes its place as it was before: one template is not put into another.

    Args:
        samples: the batch; given back as it is where nothing is a template.
        default: the prompt of samples that bring none, which may be a template too.
        template: goes around the batch's prompts; None: the batch's ``prompt``, else ``default``, is the template.

    Returns:
        The batch with a filled ``prompt`` a text, and which part of each may be shortened.

    Raises:
        DataError: a template has places that the batch has nothing for, or braces that are no place; or the texts
            belong to conversations.
    """
    if "shortenable" in samples:
        return samples  # they are filled already, and what stands in them is no template
    texts = _texts_of(samples)
    if template is not None:
        templates = [template] * len(texts if texts is not None else prompts_of(samples, default))
        texts = prompts_of(samples, default) if "prompt" in samples or texts is None else texts
    elif "prompt" in samples or texts is None or "ocr_tokens" in samples and PLACE in default:
        templates = prompts_of({**samples, "prompt": samples.get("prompt", default)}, default)
        if texts is None and not ("ocr_tokens" in samples and any(PLACE in each for each in templates)):
            return samples
    else:
        return samples
    if _are_texts(texts):
        if any(turns_of(text) for text in texts):
            raise DataError(
                "the batch has questions within conversations, which have their prompts already, and a template for "
                "prompts ('prompt' of the batch, or run.prompt): leave the template out"
            )
        texts = words_of(texts)
    rows = [_values(each, samples, texts, row) for row, each in enumerate(templates)]
    filled = [_fill(each, values) for each, (values, _) in zip(templates, rows, strict=True)]
    whole = shortenable_of({**samples, "text_input": texts}, texts) if _are_texts(texts) else [None] * len(filled)
    places = [
        None if place is None else _place(each, values, place, inside)
        for each, (values, place), inside in zip(templates, rows, whole, strict=True)
    ]
    return {**samples, "prompt": filled, "shortenable": places}


def with_context(samples: Samples, default: str) -> Samples:
    """Put what LAVIS's data sets say besides of an image in front of its prompt, as its instruction-tuned models do.

    Args:
        samples: with filled prompts, and ``context``, ``history`` or ``caption``, a text a row, empty for none.
        default: the prompt of samples that bring none.
    """
    forms = (
        ("context", "context: {}. "),
        ("history", "dialog history: {}\n"),
        ("caption", 'This image has the caption "{}". '),
    )
    if not any(samples.get(key) for key, _ in forms):
        return samples
    prompts = prompts_of(samples, default)
    places = shortenable_of(samples, prompts)
    for key, form in forms:
        said = samples.get(key) or ""
        for row, text in enumerate([said] * len(prompts) if isinstance(said, str) else said):
            if not text:
                continue
            front = form.replace(PLACE, text)
            prompts[row] = front + prompts[row]
            if (place := places[row]) is not None:
                places[row] = slice(place.start + len(front), place.stop + len(front))
    return {**samples, "prompt": prompts, "shortenable": places}


def _texts_of(samples: Samples) -> list[Any] | None:
    texts = samples.get("text_input")
    return [texts] if isinstance(texts, str) else None if texts is None else list(texts)


def _are_texts(texts: Sequence[Any] | None) -> TypeIs[list[str]]:
    return texts is not None and all(isinstance(text, str) for text in texts)


def _values(template: str, samples: Mapping[str, Any], texts: Sequence[Any] | None, row: int) -> tuple[list[str], Any]:
    """Find what a template's places take, and the number of that which may be shortened; None for none."""
    places = template.count(PLACE)
    text = None if texts is None else texts[row]
    ocr = samples.get("ocr_tokens")
    words = None if ocr is None else ", ".join(list(ocr[row])[:MOST_OCR_TOKENS])
    if places == 0:
        return [], None
    if isinstance(text, (list, tuple)):
        found = list(text)
    elif places == 1:
        found = [words if text is None else text]
    elif words is not None:
        found = [words, text]
    elif "choices" in samples:
        letters = string.ascii_lowercase
        choices = [f"({letters[n % 26]}) {choice}" for n, choice in enumerate(samples["choices"][row])]
        found = [text, " ".join(choices)]
    else:
        found = [text]
    values = [value for value in found if value is not None]
    if len(values) != places:
        there = [key for key in ("text_input", "ocr_tokens", "choices") if samples.get(key) is not None]
        raise DataError(
            f"the prompt {template!r:.200} has {places} places {{}} and the batch brings "
            f"{', '.join(there) or 'nothing'}: one is for the text, two are for ocr_tokens and text or for text and "
            "choices; or give text_input as a list of as many texts a row"
        )
    return values, values.index(text) if isinstance(text, str) else None


def _fill(template: str, values: Sequence[str]) -> str:
    if not values:
        return template  # no template, and its braces are its own
    try:
        return template.format(*values)
    except (IndexError, KeyError, ValueError) as error:
        raise DataError(
            f"the prompt {template!r:.200} is no template ({error!r}): {{}} is a place, and other braces are doubled"
        ) from error


def _place(template: str, values: Sequence[str], place: int, inside: slice | None) -> slice:
    """Find where in a filled template the part ``inside`` of the value at a place stands."""
    head = PLACE.join(template.split(PLACE)[: place + 1])
    start = len(_fill(head, values[:place]))
    inside = inside or slice(0, len(values[place]))
    return slice(start + inside.start, start + inside.stop)

"""How answers are searched for: LAVIS's options by their names, each honoured or refused."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from gitllm_plugin.errors import ConfigError

TOP_P = 0.9
"""LAVIS's default, which its tasks hand on whether or not anything is sampled."""


def search_arguments(
    use_nucleus_sampling: bool = False,
    num_beams: int = 1,
    max_length: int = 30,
    min_length: int = 0,
    top_p: float = TOP_P,
    repetition_penalty: float = 1.0,
    length_penalty: float = 1.0,
    num_captions: int = 1,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> dict[str, Any]:
    """Make arguments of transformers' ``generate`` of LAVIS's, which ``ImageTextModel.generate`` describes.

    Raises:
        ConfigError: a value is out of its bounds, or has no effect beside the others.
    """
    faults = [
        *_bounds(num_beams, max_length, min_length, num_captions),
        *_bounds_of_draws(top_p, temperature, repetition_penalty, top_k),
    ]
    if not use_nucleus_sampling:
        drawn = {"top_p": (top_p, (TOP_P, 1.0)), "top_k": (top_k, (None, 0)), "temperature": (temperature, (1.0,))}
        faults += [
            f"{name} is {value}, which has no effect without use_nucleus_sampling=True"
            for name, (value, none) in drawn.items()
            if value not in none
        ]
    if length_penalty != 1.0 and num_beams == 1:
        faults.append(f"length_penalty is {length_penalty}, which has no effect without num_beams above 1")
    if num_captions > num_beams and not (use_nucleus_sampling and num_beams == 1):
        more = "num_beams" if use_nucleus_sampling else "num_beams, or use_nucleus_sampling=True with one beam"
        faults.append(f"num_captions is {num_captions}, more than num_beams, which is {num_beams}: raise {more}")
    if faults:
        raise ConfigError("; ".join(faults))
    search: dict[str, Any] = {"do_sample": use_nucleus_sampling}
    if use_nucleus_sampling:
        # 0 is transformers' word for all tokens; its own default would be 50.
        search |= {"top_p": top_p, "temperature": temperature, "top_k": top_k or 0}
    if num_beams > 1:
        search["length_penalty"] = length_penalty
    return {
        "max_new_tokens": max_length,
        "min_new_tokens": min_length,
        "num_beams": num_beams,
        "num_return_sequences": num_captions,
        "repetition_penalty": repetition_penalty,
        **search,
    }


def _bounds(num_beams: int, max_length: int, min_length: int, num_captions: int) -> list[str]:
    counts = {"num_beams": num_beams, "max_length": max_length, "num_captions": num_captions}
    faults = [f"{name} is {value}, expected 1 or more" for name, value in counts.items() if value < 1]
    if not 0 <= min_length <= max(max_length, 1):
        faults.append(f"min_length is {min_length}, expected 0 to max_length, which is {max_length}")
    return faults


def _bounds_of_draws(top_p: float, temperature: float, repetition_penalty: float, top_k: int | None) -> list[str]:
    faults = []
    if not 0 < top_p <= 1:
        faults.append(f"top_p is {top_p}, expected above 0 and at most 1")
    for name, value in (("temperature", temperature), ("repetition_penalty", repetition_penalty)):
        if not value > 0:
            faults.append(f"{name} is {value}, expected above 0")
    if top_k is not None and top_k < 0:
        faults.append(f"top_k is {top_k}, expected 1 or more, or 0 for all tokens")
    return faults


def refuse_unknown(given: dict[str, Any], known: Sequence[str]) -> None:
    """Refuse arguments of LAVIS's other models that this one has no use for, unless they are None.

    Raises:
        ConfigError: naming them and what there is.
    """
    unknown = sorted(name for name, value in given.items() if value is not None)
    if unknown:
        raise ConfigError(f"predict_answers of this model has no {', '.join(unknown)}; it takes {', '.join(known)}")


def lemmatized(answers: Sequence[str]) -> list[str]:
    """Bring nouns and verbs of answers into their base form by spaCy, as LAVIS's BLIP-2 does (``apply_lemmatizer``).

    Raises:
        ConfigError: spaCy, or its model ``en_core_web_sm``, is not installed.
    """
    parse = _parser()
    return [
        " ".join(token.lemma_ if token.pos_ in ("NOUN", "VERB") else token.text for token in parse(answer))
        for answer in answers
    ]


@cache
def _parser() -> Any:
    try:
        import spacy

        return spacy.load("en_core_web_sm")
    except (ImportError, OSError) as error:
        raise ConfigError(
            "apply_lemmatizer needs spaCy and its model: pip install spacy && python -m spacy download en_core_web_sm; "
            "or leave it out"
        ) from error

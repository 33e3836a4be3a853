"""Mixtures of M3IT by name."""

from collections.abc import Callable

from gitllm_plugin.m3it.catalog import CATALOG, Entry, check_names

# The paper keeps these, and all that is Chinese or video, for evaluation.
_HELD_OUT = ("winoground", "viquae")


def _is_english_image(entry: Entry) -> bool:
    return entry.core and entry.language == "en" and entry.modality == "image"


def _is_held_out(entry: Entry) -> bool:
    return entry.core and (entry.name in _HELD_OUT or entry.language == "zh" or entry.modality == "video")


def _in_category(category: str) -> Callable[[Entry], bool]:
    return lambda entry: _is_english_image(entry) and entry.category == category


PRESETS: dict[str, tuple[str, Callable[[Entry], bool]]] = {
    "article_exp3": (
        "the article's third experiment: English, images, no science-qa, no vist; 1,361,650 training rows",
        lambda entry: _is_english_image(entry) and entry.train != 0 and entry.name not in ("science-qa", "vist"),
    ),
    "paper_train": (
        "what the M3IT paper trains on",
        lambda entry: entry.core and not _is_held_out(entry),
    ),
    "paper_heldout": ("what the M3IT paper keeps for evaluation: winoground, viquae, Chinese, video", _is_held_out),
    "english": ("English, images", _is_english_image),
    "chinese": ("Chinese", lambda entry: entry.core and entry.language == "zh"),
    "video": ("lists of frames", lambda entry: entry.core and entry.modality == "video"),
    "captioning": ("English, images: captions", _in_category("captioning")),
    "classification": ("English, images: classes", _in_category("classification")),
    "vqa": ("English, images: questions", _in_category("vqa")),
    "kvqa": ("English, images: questions that need knowledge", _in_category("kvqa")),
    "reasoning": ("English, images: reasoning", _in_category("reasoning")),
    "generation": ("English, images: stories, dialogues, translations", _in_category("generation")),
    "rephrased": ("copies in other words, beyond the paper's 40", lambda entry: entry.adapter == "rephrased"),
    "core": ("the paper's 40 data sets", lambda entry: entry.core),
    "all": ("all of the catalog", lambda entry: True),
}
"""What each preset is, and which entries belong to it."""


def get_preset(name: str) -> list[Entry]:
    """The entries of a preset, in the catalog's order.

    Raises:
        ConfigError: if there is no such preset; the message names all.
    """
    check_names([name], PRESETS, "preset")
    return [entry for entry in CATALOG if PRESETS[name][1](entry)]

"""What M3IT's configurations are scored by: ROUGE-L throughout, as in the paper, and what suits each besides."""

from collections.abc import Callable, Mapping, Sequence

MetricsOf = Callable[[str], Sequence[str]]
"""From a configuration's name to the names of its metrics, the most telling one first."""

DEFAULT = ("exact_match", "rouge_l")

_CAPTIONS = ("cider", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l")
_OPTIONS = ("option_accuracy", "rouge_l")
_ANSWERS = ("vqa_accuracy", "exact_match", "rouge_l")
_TEXTS = ("rouge_l",)

METRICS_OF_CONFIG: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("coco", "textcap", "image-paragraph-captioning", "msrvtt"), _CAPTIONS),
    **dict.fromkeys(("imagenet", "vcr", "science-qa", "a-okvqa", "winoground", "nlvr"), _OPTIONS),
    **dict.fromkeys(("vqa-v2", "okvqa", "text-vqa", "st-vqa", "ocr-vqa", "docvqa"), _ANSWERS),
    **dict.fromkeys(("vist", "visual-dialog", "visual-mrc", "multi30k", "mmchat", "coco-cn", "flickr8k-cn"), _TEXTS),
}
"""Configurations that :data:`DEFAULT` does not suit."""


_CATEGORIES = {
    "captioning": ("coco", "textcap", "image-paragraph-captioning"),
    "classification": ("coco-goi", "coco-text", "imagenet", "coco-itm", "snli-ve", "mocheg", "iqa"),
    "vqa": ("vqa-v2", "shapes", "docvqa", "ocr-vqa", "st-vqa", "text-vqa", "gqa"),
    "kvqa": ("okvqa", "a-okvqa", "science-qa", "viquae"),
    "reasoning": ("clevr", "nlvr", "vcr", "visual-mrc", "winoground"),
    "generation": ("vist", "visual-dialog", "multi30k"),
    "chinese": ("fm-iqa", "coco-cn", "flickr8k-cn", "chinese-food", "mmchat"),
    "video": ("ss", "msrvtt", "ivqa", "activitynet-qa", "msvd-qa", "msrvtt-qa"),
}
CATEGORY_OF_CONFIG = {config: category for category, configs in _CATEGORIES.items() for config in configs}
"""M3IT's category of each configuration."""


def metrics_by_config(given: Sequence[str] | Mapping[str, Sequence[str]] | str | MetricsOf) -> MetricsOf:
    """The metrics of each configuration, from any form in which they may be given.

    Args:
        given: names for all configurations; names by configuration, with ``default`` for the others; ``m3it`` for
            :data:`METRICS_OF_CONFIG`; or a function.
    """
    if callable(given):
        return given
    if given == "m3it":
        return lambda config: METRICS_OF_CONFIG.get(config, DEFAULT)
    if isinstance(given, Mapping):
        by_config = {name: tuple(metrics) for name, metrics in given.items()}
        return lambda config: by_config.get(config, by_config.get("default", DEFAULT))
    names = tuple(given)
    return lambda config: names

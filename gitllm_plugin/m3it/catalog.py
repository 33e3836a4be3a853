"""Every configuration of M3IT: what it is, how many rows it has, where its files lie and which form its rows have.

A new data set is one line here, and one function in :mod:`gitllm_plugin.m3it.adapters` if its rows are special. Below
are mixtures by name.

Row counts are those of the data card. Those of captioning and classification (but iqa) were read there; the others are
recalled and checked by sums only: the card's sum of each category and split agrees with them, except that it leaves
out winoground's 800 test rows and says 77,306 where the Chinese validation rows give 78,206. None: not known.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from gitllm_plugin.errors import ConfigError

SPLITS = ("train", "val", "test")

_OWN = "own"  # the category of what is not in the catalog


@dataclass(frozen=True)
class Entry:
    """One configuration.

    Attributes:
        name: as in M3IT.
        category: ``captioning``, ``classification``, ``vqa``, ``kvqa`` (questions that need knowledge), ``reasoning``
            or ``generation``.
        folder: of its files, below ``data/`` of the tree that is downloaded.
        adapter: the form of its rows, a name of :data:`gitllm_plugin.m3it.adapters.ADAPTERS`.
        train: number of examples; None if it is not known, 0 if there is no such split.
        val: likewise.
        test: likewise.
        kind: of its answers, by the score that its field reports for them: ``cider`` (captions), ``choice`` (the
            option's letter), ``vqa`` (accuracy over references), ``exact_match`` or ``rouge_l``.
            :func:`gitllm_plugin.metrics.metrics_of_kind` has the metrics of each; the paper reports ROUGE-L for all.
        licence: the terms of the data it was made from, as recalled: a hint where to look, not advice. They bind
            whoever uses it.
        language: ``en`` or ``zh``.
        modality: ``image``, or ``video``: the images are frames.
        files: split -> file names in ``folder``, the first that is there counts. ``*`` is a wildcard that must match
            one file. Splits that are not named have ``{split}.jsonl``, and ``validation.jsonl`` for val.
        text_only: whether rows without an image are examples rather than faults.
        core: whether it is one of the paper's 40 data sets.
    """

    name: str
    category: str
    folder: str
    adapter: str
    train: int | None
    val: int | None
    test: int | None
    kind: str
    licence: str
    language: str = "en"
    modality: str = "image"
    files: dict[str, tuple[str, ...]] = field(default_factory=dict)
    text_only: bool = False
    core: bool = False

    def rows(self, split: str) -> int | None:
        """Return the number of examples of a split; None if it is not known."""
        return getattr(self, split)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that it has."""
        return tuple(split for split in SPLITS if self.rows(split) != 0)

    @property
    def is_own(self) -> bool:
        """Whether it is a data set of one's own, which has uniform rows only."""
        return self.category == _OWN

    def file_names(self, split: str) -> tuple[str, ...]:
        """Return the names that the file of a split may have, the most likely first."""
        default = ("val.jsonl", "validation.jsonl") if split == "val" else (f"{split}.jsonl",)
        return self.files.get(split, default)


def own_entry(name: str) -> Entry:
    """Return what is known of a configuration that is not in the catalog."""
    return Entry(name, _OWN, name, "uniform", None, None, None, "rouge_l", "your own")


def _named(pattern: str, **words: str) -> dict[str, tuple[str, ...]]:
    """Return file names that hold the split's name, by another word where one is given."""
    return {split: (pattern.format(words.get(split, split)),) for split in SPLITS}


def _rephrased(name: str, category: str, folder: str, kind: str, licence: str) -> Entry:
    """Return a copy whose instructions, questions and answers are in other words; its files carry a date."""
    files = {split: (f"{split}_20*.jsonl",) for split in ("train", "test")}
    return Entry(f"{name}-rephrased", category, folder, "rephrased", None, 0, None, kind, licence, files=files)


_COCO = "COCO: annotations CC BY 4.0, images under Flickr's terms"
_VG = "Visual Genome: CC BY 4.0; images under Flickr's terms"
_FLICKR30K = "Flickr30k: research and education only"
_IMAGENET = "ImageNet: research only, not commercial"
_NOT_KNOWN = "not known"
_DIALOGUES = "visual-dialog-turns"
_V2: dict[str, tuple[str, ...]] = {split: (f"{split}_v2.jsonl", f"{split}.jsonl") for split in ("train", "test")}
_V2["val"] = ("val_v2.jsonl", "validation_v2.jsonl", "val.jsonl", "validation.jsonl")
_VIDEO: dict[str, Any] = {"modality": "video"}
_CHINESE: dict[str, Any] = {"language": "zh"}

# fmt: off
_CORE: tuple[Entry, ...] = (
    # name, category, folder, adapter, train, val, test, kind, licence
    Entry("coco", "captioning", "captioning/coco", "coco", 566_747, 25_010, 25_010, "cider", _COCO),
    Entry("textcap", "captioning", "captioning/textcap", "caption", 97_765, 13_965, 0, "cider", "TextCaps: CC BY 4.0"),
    Entry("image-paragraph-captioning", "captioning", "captioning/image_paragraph_captioning", "caption",
          14_575, 2_487, 2_489, "cider", _VG, files=_named("*_{}.jsonl")),

    Entry("coco-goi", "classification", "classification/coco-goi", "plain", 30_000, 2_000, 0, "choice", _COCO),
    Entry("coco-text", "classification", "classification/coco-text", "caption", 118_312, 27_550, 0, "exact_match",
          "COCO-Text: CC BY 4.0"),
    Entry("imagenet", "classification", "classification/imagenet", "imagenet", 30_000, 50_000, 0, "choice", _IMAGENET),
    Entry("coco-itm", "classification", "classification/itm", "plain", 30_000, 5_000, 5_000, "exact_match", _COCO),
    Entry("snli-ve", "classification", "classification/snli-ve", "snli_ve", 20_000, 14_339, 14_740, "exact_match",
          _FLICKR30K, files=_named("esnlive_{}.jsonl")),
    Entry("mocheg", "classification", "classification/mocheg", "plain", 4_991, 180, 466, "exact_match",
          _NOT_KNOWN, files=_named("mocheg_{}.jsonl")),
    Entry("iqa", "classification", "classification/iqa", "plain", 5_000, 1_000, 1_000, "exact_match", _NOT_KNOWN),

    Entry("vqa-v2", "vqa", "vqa/vqav2", "vqa_v2", 30_000, 30_000, 0, "vqa", "VQA v2: CC BY 4.0; " + _COCO),
    Entry("shapes", "vqa", "vqa/shapes", "shapes", 13_568, 1_024, 1_024, "exact_match", _NOT_KNOWN,
          files={"train": ("train.large.jsonl",)}),
    Entry("docvqa", "vqa", "vqa/docvqa", "plain", 39_463, 5_349, 0, "vqa", _NOT_KNOWN),
    Entry("ocr-vqa", "vqa", "vqa/ocr-vqa", "answer_sentence", 11_414, 4_940, 0, "vqa", _NOT_KNOWN),
    Entry("st-vqa", "vqa", "vqa/st-vqa", "answer_sentence", 26_074, 0, 4_070, "vqa", _NOT_KNOWN),
    Entry("text-vqa", "vqa", "vqa/text-vqa", "answer_sentence", 27_113, 0, 5_734, "vqa", "TextVQA: CC BY 4.0"),
    Entry("gqa", "vqa", "vqa/gqa", "answer_sentence", 30_001, 5_001, 0, "exact_match", "GQA: CC BY 4.0"),

    Entry("okvqa", "kvqa", "vqa/okvqa", "paraphrased", 9_009, 5_046, 0, "vqa", _COCO, files=_V2),
    Entry("a-okvqa", "kvqa", "vqa/a-okvqa", "paraphrased", 17_056, 1_145, 0, "rouge_l", "A-OKVQA: Apache-2.0; " + _COCO,
          files=_V2),
    Entry("science-qa", "kvqa", "reasoning/science_qa", "plain", 12_726, 4_241, 4_241, "choice",
          "ScienceQA: CC BY-NC-SA 4.0", files=_named("science_qa_{}.jsonl", val="validation"), text_only=True),
    Entry("viquae", "kvqa", "vqa/viquae", "paraphrased", 1_190, 1_250, 1_236, "rouge_l", _NOT_KNOWN, files=_V2),

    Entry("clevr", "reasoning", "reasoning/clevr", "plain", 30_000, 2_000, 0, "exact_match", "CLEVR: CC BY 4.0"),
    Entry("nlvr", "reasoning", "reasoning/nlvr", "plain", 29_372, 2_000, 0, "exact_match", "NLVR: CC BY 4.0"),
    Entry("vcr", "reasoning", "reasoning/vcr", "plain", 25_000, 5_000, 5_000, "rouge_l",
          "VCR: research only, not commercial"),
    Entry("visual-mrc", "reasoning", "reasoning/visual_mrc", "plain", 15_000, 2_500, 5_000, "rouge_l",
          "VisualMRC: research only, not commercial"),
    Entry("winoground", "reasoning", "classification/winoground", "plain", 0, 0, 800, "exact_match",
          "Winoground: Getty Images' terms, research only", files={"test": ("winoground_test.jsonl",)}),

    Entry("vist", "generation", "generation/vist", "vist", 5_000, 4_315, 4_350, "rouge_l", _NOT_KNOWN),
    Entry("visual-dialog", "generation", "generation/visual_dialog", "plain", 50_000, 1_000, 1_000, "rouge_l",
          "VisDial: CC BY 4.0; " + _COCO),
    Entry("multi30k", "generation", "generation/multi30k", "plain", 90_000, 6_000, 12_000, "rouge_l", _FLICKR30K),

    Entry("fm-iqa", "vqa", "vqa/fm-iqa", "plain", 164_735, 75_206, 0, "rouge_l", _COCO, **_CHINESE),
    Entry("coco-cn", "captioning", "captioning/coco-cn", "caption", 18_341, 1_000, 1_000, "rouge_l", _COCO, **_CHINESE),
    Entry("flickr8k-cn", "captioning", "captioning/flickr8k-cn", "caption", 6_000, 1_000, 1_000, "rouge_l",
          "Flickr8k: research and education only", **_CHINESE),
    Entry("chinese-food", "classification", "classification/chinesefoodnet-10", "plain", 0, 0, 1_100, "exact_match",
          _NOT_KNOWN, **_CHINESE),
    Entry("mmchat", "generation", "generation/mmchat", "plain", 3_000, 1_000, 1_000, "rouge_l", _NOT_KNOWN, **_CHINESE),

    Entry("ss", "classification", "classification/ss", "plain", 2_000, 2_000, 2_000, "exact_match",
          "Something-Something: research only, not commercial", **_VIDEO),
    Entry("msrvtt", "captioning", "captioning/msrvtt", "caption", 2_000, 1_000, 1_000, "cider", _NOT_KNOWN, **_VIDEO),
    Entry("ivqa", "vqa", "vqa/ivqa", "plain", 5_994, 2_000, 2_000, "vqa", "iVQA: Apache-2.0", **_VIDEO),
    Entry("activitynet-qa", "vqa", "vqa/activitynet-qa", "plain", 3_200, 1_800, 800, "vqa",
          "ActivityNet-QA: Apache-2.0", **_VIDEO),
    Entry("msvd-qa", "vqa", "vqa/msvd-qa", "plain", 1_161, 245, 504, "vqa", _NOT_KNOWN, **_VIDEO),
    Entry("msrvtt-qa", "vqa", "vqa/msrvtt-qa", "plain", 6_513, 497, 2_990, "vqa", _NOT_KNOWN, **_VIDEO),
)

# Beyond the paper's 40; here a data set is added.
_BEYOND: tuple[Entry, ...] = (
    # name, category, folder, adapter, train, val, test, kind, licence
    Entry("refcoco", "classification", "classification/refcoco", "plain", None, None, None, "choice", _COCO),
    Entry("vsr", "classification", "classification/vsr", "vsr", None, None, None, "exact_match",
          "VSR: CC BY 4.0; " + _COCO),
    Entry("imagenet-open-ended", "classification", "classification/imagenet", "imagenet_open", 30_000, 50_000, 0,
          "exact_match", _IMAGENET),
    # The rows of visual-dialog read in another way: what was said before the question as turns of a conversation.
    Entry(_DIALOGUES, "generation", "generation/visual_dialog", "dialogue", 50_000, 1_000, 1_000, "rouge_l",
          "VisDial: CC BY 4.0; " + _COCO),
    _rephrased("shapes", "vqa", "vqa/shapes", "exact_match", _NOT_KNOWN),
    _rephrased("coco-goi", "classification", "classification/coco-goi", "choice", _COCO),
    _rephrased("coco-text", "classification", "classification/coco-text", "exact_match", "COCO-Text: CC BY 4.0"),
    _rephrased("imagenet", "classification", "classification/imagenet", "choice", _IMAGENET),
    _rephrased("coco-itm", "classification", "classification/itm", "exact_match", _COCO),
    _rephrased("snli-ve", "classification", "classification/snli-ve", "exact_match", _FLICKR30K),
    _rephrased("mocheg", "classification", "classification/mocheg", "exact_match", _NOT_KNOWN),
    _rephrased("vsr", "classification", "classification/vsr", "exact_match", "VSR: CC BY 4.0; " + _COCO),
    _rephrased("refcoco", "classification", "classification/refcoco", "choice", _COCO),
    _rephrased("clevr", "reasoning", "reasoning/clevr", "exact_match", "CLEVR: CC BY 4.0"),
    _rephrased("visual-dialog", "generation", "generation/visual_dialog", "rouge_l", "VisDial: CC BY 4.0; " + _COCO),
)
# fmt: on

CATALOG = (*(replace(entry, core=True) for entry in _CORE), *_BEYOND)
"""All configurations."""

BY_NAME = {entry.name: entry for entry in CATALOG}
"""The catalog by name."""


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
    "all": (f"all of the catalog but {_DIALOGUES}", lambda entry: entry.name != _DIALOGUES),
}
"""What each preset is, and which entries belong to it."""


def get_preset(name: str) -> list[Entry]:
    """Return the entries of a preset, in the catalog's order.

    Raises:
        ConfigError: if there is no such preset; the message names all.
    """
    check_names([name], PRESETS, "preset")
    return [entry for entry in CATALOG if PRESETS[name][1](entry)]


def check_names(given: Iterable[str], known: Iterable[str], what: str) -> None:
    """Check names.

    Args:
        given: what was asked for.
        known: what there is.
        what: they are names of, in the singular, for the message.

    Raises:
        ConfigError: if one of ``given`` is not among ``known``, all of which are named.
    """
    # All that are wrong at once, and in one order whatever they were given in.
    known = sorted(known)
    unknown = sorted(set(given) - set(known))
    if unknown:
        plural = "s" if len(unknown) > 1 else ""
        raise ConfigError(
            f"unknown {what}{plural} {', '.join(map(repr, unknown))}; there are: {', '.join(known)} "
            "(`gitllm m3it list` shows them)"
        )

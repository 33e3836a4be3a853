"""What the tasks of this package read of the ``run`` node, which they share with the runner."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from gitllm_plugin.config import ReadIf, Rule, Says, node
from gitllm_plugin.config.model import is_there
from gitllm_plugin.config.run import LogSettings
from gitllm_plugin.metrics import METRICS, why_not

LOSS = "loss"
HOST_NAMES = {
    "bleu_1": "Bleu_1",
    "bleu_2": "Bleu_2",
    "bleu_3": "Bleu_3",
    "bleu_4": "Bleu_4",
    "meteor": "METEOR",
    "rouge_l_coco": "ROUGE_L",
    "cider": "CIDEr",
    "spice": "SPICE",
}
"""Metrics of captions (``gitllm_plugin.metrics.CAPTION_METRICS``) -> what LAVIS calls them."""

_Metrics = tuple[str, ...] | dict[str, tuple[str, ...]] | Literal["m3it"]
_Tokens = Annotated[int, Field(ge=1)]


def _lists_of(metrics: _Metrics) -> list[tuple[str, ...]]:
    if isinstance(metrics, Mapping):
        return list(metrics.values())
    return [] if metrics == "m3it" else [metrics]  # type: ignore[list-item]


def choose_agg_metric(metrics: _Metrics, given: str | None) -> str:
    """Choose the score that decides on the best epoch: the one that is given, else the first that is computed."""
    named = [name for names in _lists_of(metrics) for name in names]
    by_config = metrics == "m3it" or isinstance(metrics, Mapping)
    return given or ("primary" if by_config else (named or [LOSS])[0])


def _metrics_fault(metrics: _Metrics) -> str | None:
    if isinstance(metrics, Mapping) and not metrics:
        return ".metrics is {}, expected lists by configuration; [] is for no generated answers"
    unknown = [name for names in _lists_of(metrics) for name in names if name not in METRICS]
    return f".metrics has {', '.join(unknown)}; there are {', '.join(METRICS)}" if unknown else None


def _agg_metric_fault(metrics: _Metrics, given: str | None, valid_loss: bool) -> str | None:
    if _metrics_fault(metrics):
        return None
    chosen = choose_agg_metric(metrics, given)
    group, slash, name = chosen.rpartition("/")
    if slash and not group:
        return f".agg_metric is {chosen!r}, expected a metric, or CONFIGURATION/METRIC or CATEGORY/METRIC"
    named = [name for names in _lists_of(metrics) for name in names]
    by_config = metrics == "m3it" or isinstance(metrics, Mapping)
    # Which of all the catalog names depends on the configurations that there are: known at the end alone.
    named = list(METRICS) if metrics == "m3it" else named
    computed = [*dict.fromkeys(named), *(["primary"] if by_config else []), *([LOSS] if valid_loss else [])]
    if name not in computed:
        return f".agg_metric is {chosen!r}, but computed are: {', '.join(computed) or 'none'}"
    reason = why_not(name)
    return f".agg_metric is {chosen!r}, which cannot be computed here: {reason}" if reason else None


def _lengths_fault(least: int, most: int) -> str | None:
    return f".min_len is {least}, more than max_len, which is {most}" if least > most else None


@node("run")
class M3ITTaskSettings(LogSettings):
    """What the task ``m3it`` reads."""

    metrics: Annotated[_Metrics, Says("a list of names, a list for each configuration, or m3it")] = (
        "exact_match",
        "rouge_l",
    )
    """Names of metrics, none for no generated answers; or lists of them by configuration, ``default`` for all others;
    or ``m3it``, those of M3IT's catalog."""

    agg_metric: Annotated[str, Field(min_length=1)] | None = None
    """The score that chooses the best checkpoint: a metric, ``{config}/{metric}``, ``{category}/{metric}``,
    ``primary`` (the mean over configurations of each one's first metric) or ``loss``; null for the first metric, or
    ``primary`` where they differ by configuration."""

    valid_loss: bool = True
    """Whether the loss is computed in evaluation."""

    max_len: Annotated[_Tokens, ReadIf(("metrics",), bool, "where metrics are computed")] = 30
    """Most new tokens of an answer."""

    min_len: Annotated[int, Field(ge=0), ReadIf(("metrics",), bool, "where metrics are computed")] = 1
    """Fewest new tokens of an answer."""

    num_beams: Annotated[int, Field(ge=1), ReadIf(("metrics",), bool, "where metrics are computed")] = 1
    """Beams of the search."""

    pictures: Annotated[int, Field(ge=0), ReadIf(("metrics",), bool, "where metrics are computed")] = 32
    """How many examples the page of pictures shows; 0 for no page."""

    RULES = (
        Rule(("metrics",), _metrics_fault),
        Rule(("metrics", "agg_metric", "valid_loss"), _agg_metric_fault),
        Rule(
            ("metrics", "min_len", "max_len"), lambda metrics, *lengths: _lengths_fault(*lengths) if metrics else None
        ),
    )


@node("run")
class PreferenceSettings(M3ITTaskSettings):
    """What the task ``git_llm_dpo`` reads."""

    metrics: Annotated[_Metrics, Says("a list of names, a list for each configuration, or m3it")] = ()
    """As of the task ``m3it``; none are computed by default, and the lowest loss chooses the best checkpoint."""

    beta: Annotated[float, Field(gt=0)] = 0.1
    """How much it costs to leave the model that training began with."""

    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """The share of pairs that are taken to be the wrong way round."""


@node("run")
class NoTaskSettings:
    """Of a task that reads nothing: a key that is not the runner's is wrong."""


@node("run")
class GenerationSettings:
    """What LAVIS's tasks read that let a model write."""

    num_beams: Annotated[int, Field(ge=1)] = 3
    """Beams of the search."""

    max_len: _Tokens = 30
    """Most new tokens of an answer."""

    min_len: Annotated[int, Field(ge=0)] = 1
    """Fewest new tokens of an answer."""

    evaluate: bool = False
    """Evaluate only."""

    RULES = (Rule(("min_len", "max_len"), _lengths_fault),)


def _caption_metrics_fault(names: tuple[str, ...]) -> str | None:
    unknown = [name for name in names if name not in HOST_NAMES]
    return f".caption_metrics has {', '.join(unknown)}; there are {', '.join(HOST_NAMES)}" if unknown else None


def _cider_fault(report: bool) -> str | None:
    reason = why_not("cider") if report else None
    return f"{reason}; or set run.report_metric: False, to write captions only" if reason else None


def _annotation_file_fault(path: str | None, _: bool) -> str | None:
    missing = path is not None and not (is_there(path) and Path(path).expanduser().is_file())
    return f".annotation_file: there is no file {path}" if missing else None


def _reports(report: bool) -> bool:
    return report


@node("run")
class CaptioningSettings(GenerationSettings):
    """What the task ``captioning`` reads."""

    report_metric: bool = True
    """Whether captions are scored, or only written."""

    annotation_file: Annotated[str | None, ReadIf(("report_metric",), _reports, "where report_metric is true")] = None
    """Captions to compare with, in COCO's format; null for those of the data set's own annotations."""

    length_penalty: Annotated[float | None, ReadIf(("num_beams",), lambda beams: beams > 1, "with several beams")] = (
        None
    )
    """Exponent on a beam's length; null for the model's own."""

    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    """Above 1 discourages repeated tokens; null for the model's own."""

    caption_metrics: Annotated[tuple[str, ...], ReadIf(("report_metric",), _reports, "where report_metric is true")] = (
        tuple(HOST_NAMES)
    )
    """Which of COCO's scores are computed; CIDEr and BLEU-4 always are."""

    RULES = (
        Rule(("caption_metrics",), _caption_metrics_fault),
        Rule(("report_metric",), _cider_fault),
        Rule(("annotation_file", "machine.files"), _annotation_file_fault),
    )


@node("run")
class DialogueSettings(GenerationSettings):
    """What the task ``dialogue`` reads; it generates nothing."""

    num_beams: Annotated[int, Field(ge=1)] = 1
    """Not used: LAVIS's task asks for it and generates nothing."""

    report_metric: bool = True
    """Not used: LAVIS's task asks for it, and the loss is all that it computes."""


@node("run")
class RetrievalSettings:
    """What the task ``retrieval`` reads."""

    k_test: Annotated[int, Field(ge=0)] | None = None
    """How many captions of each picture, and pictures of each caption, are scored in full, the nearest by features;
    null or 0 for all. LAVIS's own models need a number."""

    evaluate: bool = False
    """Evaluate only."""


def _template(text: str) -> str:
    try:
        text.format("OCR tokens", "question")
    except (IndexError, KeyError, ValueError) as error:
        raise ValueError(
            f"{text!r} is no template with {{}} for the question, or two for OCR tokens and question, or for question "
            f"and choices: {error!r}"
        ) from error
    return text


@node("run")
class QuestionSettings(GenerationSettings):
    """What the tasks ``vqa``, ``gqa`` and ``aok_vqa`` read."""

    max_len: _Tokens = 10
    """Most new tokens of an answer."""

    inference_method: Literal["rank", "generate"] = "rank"
    """``generate`` writes an answer, ``rank`` chooses one of the data set's answers."""

    num_ans_candidates: Annotated[
        int,
        Field(ge=0),
        ReadIf(("inference_method",), lambda method: method == "rank", "with inference_method: rank"),
    ] = 128
    """How many answers are looked at more closely when they are ranked; 0 for all."""

    prompt: Annotated[str, AfterValidator(_template)] = ""
    """A template with ``{}`` for the question, or two: for OCR tokens and question, or for question and choices; empty
    for the question as it is."""

"""CIDEr, BLEU, METEOR and SPICE by the field's own code, pycocoevalcap, as COCO's captions are scored with it.

These are scores of a set of captions: CIDEr weighs words by how many of the set's images have them, BLEU and METEOR add
up counts before they divide. So a set's score is not always the mean of its examples'.
"""

import shutil
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gitllm_plugin.metrics.registry import Metric, Scores, clean_all, register

BLEU = ("bleu_1", "bleu_2", "bleu_3", "bleu_4")
CAPTION_METRICS = (*BLEU, "meteor", "rouge_l_coco", "cider", "spice")
"""What :func:`score_captions` can compute."""

FEW = 100
"""Images; of fewer, CIDEr's weights of words say little."""

PTB, TREEBANK = "PTB (Stanford CoreNLP)", "Treebank (NLTK); no Java for PTB"


def score_captions(
    predictions: Sequence[str], references: Sequence[Sequence[str]], metrics: Sequence[str] = CAPTION_METRICS
) -> Scores:
    """Score a set of captions.

    Texts are split by COCO's tokenizer, which needs Java; without it by NLTK's, which differs in small things, and the
    result says so. Metrics that cannot be computed here are skipped, each with its reason; so is CIDEr of one image,
    and of few it has a note.

    Args:
        predictions: N captions.
        references: N lists of one or more captions.
        metrics: names in :data:`CAPTION_METRICS`.

    Raises:
        ImportError: when pycocoevalcap is not installed.
        ValueError: when the lengths differ, a list is empty, or a metric is not known.
    """
    _check(predictions, references, metrics)
    scores = Scores(tokenizer=PTB if has_java() else TREEBANK)
    scores.skipped = {name: reason for name in metrics if (reason := what_lacks(name))}
    if "cider" in metrics and "cider" not in scores.skipped and predictions:
        _tell_if_small(len(predictions), scores)
    wanted = [name for name in metrics if name not in scores.skipped]
    if not predictions or not wanted:
        return scores
    both = clean_all([[prediction, *accepted] for prediction, accepted in zip(predictions, references, strict=True)])
    texts = [[" ".join(text.split()) for text in row] for row in both]  # one line each, whatever ends a line
    tokens = _tokenize(texts)
    hypotheses = {n: words[:1] for n, words in enumerate(tokens)}
    accepted = {n: words[1:] for n, words in enumerate(tokens)}
    for names, load in _SCORERS.items():
        if set(names) & set(wanted):
            found = load()(accepted, hypotheses)
            scores.over_all |= {
                name: over_all for name, (over_all, _) in zip(names, found, strict=True) if name in wanted
            }
            scores.by_example |= {name: each for name, (_, each) in zip(names, found, strict=True) if name in wanted}
    return scores


def _tell_if_small(count: int, scores: Scores) -> None:
    if count == 1:
        scores.skipped["cider"] = (
            "it weighs words by how few of the set's images have them, and of one image is 0 whatever a caption says: "
            "evaluate two images or more"
        )
    elif count < FEW:
        scores.notes["cider"] = (
            f"its weights of words come from {count} images; compare it with scores of the same images only, and with "
            f"published ones from {FEW} images on"
        )


def has_java() -> bool:
    """Say whether COCO's tokenizer, METEOR and SPICE can be run."""
    return shutil.which("java") is not None


def what_lacks(metric: str) -> str | None:
    """Say why a metric of captions cannot be computed on this machine, and what to do about it; None where it can."""
    if find_spec("pycocoevalcap") is None:
        return f"{metric} needs pycocoevalcap: pip install 'gitllm-plugin[eval]'"
    if metric in ("meteor", "spice") and not has_java():
        return f"{metric} needs Java, and no `java` is on the PATH: install a runtime (Debian: default-jre-headless)"
    if metric == "spice" and not _spice_models().is_file():
        return "spice needs Stanford CoreNLP (400 MB): run `python -m pycocoevalcap.spice.get_stanford_models` once"
    return None


def _check(predictions: Sequence[str], references: Sequence[Sequence[str]], metrics: Sequence[str]) -> None:
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions, but {len(references)} lists of references")
    if not all(references):
        raise ValueError("an example has no references to compare with")
    unknown = [name for name in metrics if name not in CAPTION_METRICS]
    if unknown:
        raise ValueError(f"no caption metric {', '.join(unknown)}; there are {', '.join(CAPTION_METRICS)}")
    if find_spec("pycocoevalcap") is None:
        raise ImportError(what_lacks(metrics[0]) if metrics else "no metrics")


def _tokenize(texts: Sequence[Sequence[str]]) -> list[list[str]]:
    if not has_java():
        return [[_treebank_words(text) for text in row] for row in texts]
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokens = PTBTokenizer().tokenize({n: [{"caption": text} for text in row] for n, row in enumerate(texts)})
    return [tokens[n] for n in range(len(texts))]


def _treebank_words(text: str) -> str:
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

    return " ".join(word for word in _treebank().tokenize(text.lower()) if word not in PUNCTUATIONS)


@lru_cache(maxsize=1)
def _treebank() -> Any:
    from nltk.tokenize import TreebankWordTokenizer

    return TreebankWordTokenizer()


Texts = dict[int, list[str]]
Scorer = Callable[[Texts, Texts], list[tuple[float, list[float]]]]


def _bleu() -> Scorer:
    from pycocoevalcap.bleu.bleu import Bleu

    def score(accepted: Texts, hypotheses: Texts) -> list[tuple[float, list[float]]]:
        over_all, by_example = Bleu(len(BLEU)).compute_score(accepted, hypotheses, verbose=0)
        return [(float(total), list(map(float, each))) for total, each in zip(over_all, by_example, strict=True)]

    return score


def _meteor() -> Scorer:
    from pycocoevalcap.meteor.meteor import Meteor

    return lambda accepted, hypotheses: [_plain(*Meteor().compute_score(accepted, hypotheses))]


def _rouge() -> Scorer:
    from pycocoevalcap.rouge.rouge import Rouge

    return lambda accepted, hypotheses: [_plain(*Rouge().compute_score(accepted, hypotheses))]


def _cider() -> Scorer:
    from pycocoevalcap.cider.cider import Cider

    return lambda accepted, hypotheses: [_plain(*Cider().compute_score(accepted, hypotheses))]


def _spice() -> Scorer:
    from pycocoevalcap.spice.spice import Spice

    def score(accepted: Texts, hypotheses: Texts) -> list[tuple[float, list[float]]]:
        over_all, by_example = Spice().compute_score(accepted, hypotheses)
        return [_plain(over_all, [scores["All"]["f"] for scores in by_example])]

    return score


_SCORERS: dict[tuple[str, ...], Callable[[], Scorer]] = {
    BLEU: _bleu,
    ("meteor",): _meteor,
    ("rouge_l_coco",): _rouge,
    ("cider",): _cider,
    ("spice",): _spice,
}


def _plain(over_all: Any, by_example: Any) -> tuple[float, list[float]]:
    return float(over_all), list(map(float, by_example))


def _spice_models() -> Path:
    spec = find_spec("pycocoevalcap")
    assert spec is not None and spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations))) / "spice" / "lib" / "stanford-corenlp-3.6.0.jar"


_MEANINGS = {
    **{name: f"COCO's BLEU-{n}" for n, name in enumerate(BLEU, 1)},
    "meteor": "COCO's METEOR; needs Java",
    "rouge_l_coco": "COCO's ROUGE-L, which is not `rouge_l`: recall weighs more, and words are COCO's",
    "cider": "COCO's CIDEr: words of which few images have any weigh more",
    "spice": "COCO's SPICE: objects, their attributes and relations; needs Java and Stanford CoreNLP",
}
for _name, _meaning in _MEANINGS.items():
    register(
        Metric(
            _name,
            _meaning,
            score_captions,
            leads=("cider",) if _name == "cider" else (),
            kinds=("cider",) if _name in (*BLEU, "meteor") else (),
            why_not=partial(what_lacks, _name),
        )
    )

"""What every metric promises, whoever adds one: over all that are registered."""

import random
import unicodedata
from pathlib import Path

import pytest

from gitllm_plugin.m3it.catalog import CATALOG
from gitllm_plugin.metrics import METRICS, metric, metrics_of_kind, score, why_not
from gitllm_plugin.metrics import registry as registry_module

PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"
REFERENCES = [
    ["(A) a red cat sits on the mat"],
    ["(B) two brown dogs run over the wet grass"],
    ["(C) the old man is reading a newspaper", "(C) an old man reads his morning paper"],
    ["(D) three children are playing with a blue ball"],
    ["(E) a train leaves the station at night"],
]
PERFECT = [accepted[0] for accepted in REFERENCES]
WRONG = [*PERFECT[1:], PERFECT[0]]


# These start a Java process that reads its tables at each call.
SLOW = {"meteor", "spice"}
NAMES = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in sorted(METRICS)]


@pytest.fixture(params=NAMES)
def name(request):
    if reason := why_not(request.param):
        pytest.skip(reason)
    return request.param


def scores_of(name, predictions, references=REFERENCES):
    scores = score([name], predictions, references)
    assert not scores.skipped
    return scores.over_all[name], scores.by_example[name]


def test_right_answers_score_best_and_empty_ones_nothing(name):
    (best, best_each), (wrong, _) = scores_of(name, PERFECT), scores_of(name, WRONG)
    nothing, nothing_each = scores_of(name, [""] * len(REFERENCES))
    assert best > wrong >= nothing
    assert nothing == pytest.approx(0, abs=1e-6) and nothing_each == pytest.approx([0] * len(REFERENCES), abs=1e-6)
    assert min(best_each) > max(nothing_each) and len(best_each) == len(REFERENCES)
    # CIDEr alone is not between 0 and 1: an image's score is up to 10.
    assert best == pytest.approx(1, abs=1e-6) or name in ("cider", "meteor")


def test_the_order_of_examples_does_not_matter(name):
    mixed = [*PERFECT[:2], *WRONG[2:]]
    order = random.Random(0).sample(range(len(mixed)), len(mixed))
    total, each = scores_of(name, mixed)
    again, each_again = scores_of(name, [mixed[n] for n in order], [REFERENCES[n] for n in order])
    assert again == pytest.approx(total, abs=1e-9)
    assert each_again == pytest.approx([each[n] for n in order], abs=1e-9)


def test_it_does_not_matter_how_accents_are_typed(name):
    accented = [[f"{text}, très élégant" for text in accepted] for accepted in REFERENCES]
    apart = [unicodedata.normalize("NFD", accepted[0]) for accepted in accented]
    assert apart[0] != accented[0][0]
    assert scores_of(name, apart, accented) == scores_of(name, [accepted[0] for accepted in accented], accented)


def test_whatever_a_text_holds_it_is_scored(name):
    odd = ["", " \n", "\x00", "\ud800", "\u202bab\u202c", "👩‍🔬", "\u0301", "a" * 100_000, "\x1c", "|||"]
    total, each = scores_of(name, odd, [["a red cat", "\udfff"]] * len(odd))
    assert all(0 <= value <= 10 for value in (total, *each))


def test_references_and_predictions_are_as_many(name):
    with pytest.raises(ValueError):
        score([name], ["a"], [])


def test_the_page_has_every_metric_with_its_meaning():
    rows = [f"| `{metric.name}` | {metric.meaning} |" for metric in METRICS.values()]
    page = PAGE.read_text(encoding="utf-8")
    missing = [row for row in rows if row not in page]
    assert not missing, f"the table in {PAGE.name} lacks:\n" + "\n".join(missing)
    written = page.partition("| name | what it is |\n| --- | --- |\n")[2].partition("\n\n")[0].splitlines()
    assert set(written) == set(rows)


def test_every_kind_of_the_catalog_has_metrics_and_no_metric_is_for_another():
    kinds = {entry.kind for entry in CATALOG}
    assert all(metrics_of_kind(kind) for kind in kinds)
    assert {kind for metric in METRICS.values() for kind in (*metric.leads, *metric.kinds)} == kinds


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("cider", ("cider", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l")),
        ("choice", ("option_accuracy", "rouge_l")),
        ("vqa", ("vqa_accuracy", "exact_match", "rouge_l")),
        ("exact_match", ("exact_match", "rouge_l")),
        ("rouge_l", ("rouge_l",)),
    ],
)
def test_the_first_metrics_of_each_kind_keep_their_order(kind, expected):
    """Whatever is added: the first one chooses the best epoch, and the others are columns of tables."""
    found = metrics_of_kind(kind)
    assert found[0] == expected[0] and tuple(name for name in found if name in expected) == expected


def test_one_decorated_function_is_all_that_a_new_metric_takes(monkeypatch):
    monkeypatch.setattr(registry_module, "METRICS", dict(METRICS))

    @metric("longer", "as long as a reference or longer", kinds=("vqa",))
    def longer(predictions, references):
        return [float(len(p) >= min(map(len, r))) for p, r in zip(predictions, references, strict=True)]

    scores = registry_module.score(["longer", "exact_match"], ["abc", "a"], [["ab"], ["bc"]])
    assert scores.over_all == {"longer": 0.5, "exact_match": 0.0} and scores.by_example["longer"] == [1.0, 0.0]
    assert set(metrics_of_kind("vqa")) >= {"vqa_accuracy", "longer", "exact_match", "rouge_l"}
    for declared in ({"name": "longer"}, {"name": "other", "leads": ("vqa",)}):
        with pytest.raises(ValueError, match="declared twice"):
            metric(meaning="", **declared)(longer)

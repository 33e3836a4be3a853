"""VQA accuracy and options: agreement with the challenge's own code, which LAVIS carries, and cases by hand."""

import random
from types import SimpleNamespace

import pytest

from gitllm_plugin.metrics import metrics_by_config, option_accuracy, rouge_l, vqa_accuracy
from gitllm_plugin.metrics.option_accuracy import option_letter
from gitllm_plugin.metrics.vqa import CONTRACTIONS, normalize_vqa

TEXTS = [
    "A red, ripe apple!",
    "1,000 people",
    "two",
    "The cat isnt here.",
    "3.5 meters...",
    "U.S.A.",
    "yes; no",
    "yes ;no",
    "black/white (striped)",
    "y'all'dve been",
    "couldnt've",
    "somebody'd know",
    "none",
    "it's 12:30 p.m.",
    "a",
    "",
    "t-shirt",
    "AT&T",
    "don't\tknow\n",
    "“quoted”",
]


@pytest.fixture(scope="module")
def original():
    """The challenge's code, with its number words as at the start (it adds every word that it sees)."""
    from gitllm_plugin.host.locate import prepare

    prepare()
    from lavis.common.vqa_tools.vqa_eval import VQAEval

    return VQAEval


def test_normalisation_is_the_challenges(original):
    evaluation = original()
    for text in TEXTS:
        line = text.replace("\n", " ").replace("\t", " ").strip()
        expected = evaluation.processDigitArticle(evaluation.processPunctuation(line))
        assert normalize_vqa(text) == expected, text


def test_contractions_are_the_challenges(original):
    # Words are compared in lower case: others are never found. What stays as it is needs no rule.
    theirs = {key: word for key, word in original().contractions.items() if key == key.lower() and key != word}
    assert theirs == CONTRACTIONS


def test_accuracy_is_the_challenges_where_annotators_differ(original):
    answers = ["red", "blue", "green", "2", "yes"]  # LAVIS's older version normalises these differently from none
    generator = random.Random(0)
    rows = []
    while len(rows) < 50:
        given = [generator.choice(answers[: generator.randint(2, 5)]) for _ in range(10)]
        if len(set(given)) > 1:
            rows.append((generator.choice([*answers, "Two", "the red", "Yes."]), given))
    annotations = {
        n: {
            "answers": [{"answer_id": k, "answer": text} for k, text in enumerate(given)],
            "question_type": "",
            "answer_type": "",
        }
        for n, (_, given) in enumerate(rows)
    }
    results = {n: {"answer": prediction} for n, (prediction, _) in enumerate(rows)}
    vqa = SimpleNamespace(qa=annotations, getQuesIds=lambda: list(annotations))
    evaluation = original(vqa, SimpleNamespace(qa=results), n=10)
    evaluation.evaluate()
    scores = vqa_accuracy([prediction for prediction, _ in rows], [given for _, given in rows])
    assert scores == pytest.approx([evaluation.evalQA[n] / 100 for n in range(len(rows))], abs=1e-6)
    assert 0.1 < sum(scores) / len(scores) < 0.9


@pytest.mark.parametrize(
    ("prediction", "references", "expected"),
    [
        ("red", ["red"] * 2 + ["blue"] * 8, (2 * (1 / 3) + 8 * (2 / 3)) / 10),
        ("The Red.", ["red"] * 9 + ["blue"], 1.0),
        ("The Red.", ["red"] * 10, 0.0),  # what all agree on is compared as it stands, as the challenge does
        ("red", ["red"] * 10, 1.0),
        ("The Red.", ["red"], 1.0),  # one reference: LAVIS's own task would score 0
        ("blue", ["red", "blue"], 1.0),
        ("green", ["red", "blue"], 0.0),
    ],
)
def test_vqa_accuracy_by_hand(prediction, references, expected):
    assert vqa_accuracy([prediction], [references]) == pytest.approx([expected])


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("(C) tabby cat", "C"),
        ("c", "C"),
        ("B.", "B"),
        ("b) two", "B"),
        ("The answer is (D).", "D"),
        ("The answer is D", "D"),
        ("A cat sits", None),
        ("It is a dog.", None),
        ("e.g. this", None),
        ("", None),
    ],
)
def test_options_are_recognised(text, letter):
    assert option_letter(text) == letter


def test_option_accuracy_compares_letters_or_else_texts():
    predictions = ["(C) wrong text", "(A)", "tabby cat.", "a dog", "(B) tabby cat"]
    references = [["(C) tabby cat"]] * 5
    assert option_accuracy(predictions, references) == [1.0, 0.0, 1.0, 0.0, 0.0]
    assert option_accuracy(["Yes"], [["yes"]]) == [1.0]


def test_chinese_characters_are_words_of_rouge_l():
    assert rouge_l(["一只黑猫"], [["一只白猫"]]) == pytest.approx([0.75])
    assert rouge_l(["一只黑猫 cat"], [["cat"]]) == pytest.approx([1 / 3])


def test_metrics_by_configuration_may_be_given_in_three_ways():
    assert metrics_by_config(["rouge_l"])("coco") == ("rouge_l",)
    given = metrics_by_config({"coco": ["cider"], "default": ["exact_match"]})
    assert (given("coco"), given("other")) == (("cider",), ("exact_match",))
    assert metrics_by_config(lambda config: [config])("x") == ["x"]

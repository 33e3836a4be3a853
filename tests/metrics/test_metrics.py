"""Metrics on fixed texts."""

import subprocess
import sys

import pytest

from gitllm_plugin.metrics import exact_match, option_accuracy, rouge_l, vqa_accuracy

PREDICTIONS = ["A teal rectangle.", "the dog  runs", "yes", "", "the cat sat on the mat"]
REFERENCES = [["a teal rectangle"], ["a cat", "The dog runs"], ["no"], ["blue"], ["a cat on a mat", "mats"]]


def test_exact_match_ignores_case_space_and_final_period():
    assert exact_match(PREDICTIONS, REFERENCES) == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert exact_match(["1.5", "15"], [["1.5"], ["1.5"]]) == [1.0, 0.0]


def test_rouge_l_by_hand():
    # "cat on mat" is common: 3 of 6 words predicted, 3 of 5 words expected
    precision, recall = 3 / 6, 3 / 5
    f_measure = 2 * precision * recall / (precision + recall)
    assert rouge_l(PREDICTIONS, REFERENCES) == pytest.approx([1.0, 1.0, 0.0, 0.0, f_measure])


def test_rouge_l_agrees_with_rouge_score_and_takes_the_best_reference():
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    expected = [
        scorer.score_multi(references, prediction)["rougeL"].fmeasure
        for prediction, references in zip(PREDICTIONS, REFERENCES, strict=True)
    ]
    assert rouge_l(PREDICTIONS, REFERENCES) == pytest.approx(expected)


@pytest.mark.parametrize("metric", [exact_match, option_accuracy, rouge_l, vqa_accuracy])
def test_every_metric_gives_one_score_per_example(metric):
    scores = metric(PREDICTIONS, REFERENCES)
    assert len(scores) == len(PREDICTIONS)
    assert all(isinstance(score, float) and 0 <= score <= 1 for score in scores)
    assert metric([], []) == []
    with pytest.raises(ValueError):
        metric(["a"], [])


def test_rouge_score_is_not_imported_before_it_is_needed():
    code = "import sys, gitllm_plugin.metrics; assert 'rouge_score' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

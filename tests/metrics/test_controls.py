"""What is scored without looking at the pictures."""

import random
from collections import Counter

import pytest

from gitllm_plugin.metrics import exact_match, score_controls
from gitllm_plugin.metrics.controls import GUESS, LEAST, OTHERS


def kinds(counts, right, seed=0):
    """Questions, predictions and references of a set in which some part is answered rightly, the rest by chance."""
    chance = random.Random(seed)
    truth = [kind for kind, count in counts.items() for _ in range(count)]
    chance.shuffle(truth)
    said = [kind if chance.random() < right else chance.choice(list(counts)) for kind in truth]
    return [""] * len(truth), said, [[kind] for kind in truth]


@pytest.mark.parametrize("counts", [{"cat": 30, "dog": 10}, {"a": 5, "b": 5, "c": 20}, {"yes": 10, "no": 10}])
def test_the_guess_is_the_share_of_the_most_frequent_answer(counts):
    found = score_controls(["exact_match", "rouge_l"], *kinds(counts, 0.9))
    assert found[GUESS]["exact_match"] == pytest.approx(max(counts.values()) / sum(counts.values()))


@pytest.mark.parametrize("right", [0.0, 0.5, 1.0])
def test_answers_to_other_pictures_are_right_as_often_as_among_all_pairs(right):
    questions, said, truth = kinds({"cat": 40, "dog": 25, "fish": 10}, right, seed=3)
    pairs = [(one, other) for one in range(75) for other in range(75) if one != other]
    all_pairs = exact_match([said[one] for one, _ in pairs], [truth[other] for _, other in pairs])
    found = score_controls(["exact_match"], questions, said, truth)[OTHERS]["exact_match"]
    assert found == pytest.approx(sum(all_pairs) / len(pairs), abs=0.03)


def test_each_question_that_is_asked_often_has_a_guess_of_its_own_and_the_others_share_one():
    asked = ["is it red?"] * 12 + ["how many?"] * 12 + ["who is it?", "where?", "why?"]
    truth = [["yes"]] * 9 + [["no"]] * 3 + [["two"]] * 8 + [["three"]] * 4 + [["ann"], ["here"], ["here"]]
    found = score_controls(["exact_match"], asked, ["yes"] * len(asked), truth)
    assert found[GUESS]["exact_match"] == pytest.approx((9 + 8 + 2) / 27)
    # "yes" is moved within its own question alone: right for nine of twelve, and never elsewhere.
    assert found[OTHERS]["exact_match"] == pytest.approx(9 / 27, abs=0.01)


def test_several_right_answers_and_answers_that_are_all_different():
    truth = [[f"a picture of {number}", "a thing"] for number in range(25)]
    found = score_controls(["exact_match"], [""] * 25, [answers[0] for answers in truth], truth)
    assert found == {GUESS: {"exact_match": 1.0}, OTHERS: {"exact_match": 0.0}}


@pytest.mark.parametrize("names", [["cider"], [], ["bleu_4", "spice"]])
def test_what_scores_a_set_as_a_whole_has_none(names):
    assert score_controls(names, *kinds({"cat": 30, "dog": 10}, 0.9)) == {}


def test_few_examples_have_none_and_many_are_looked_at_in_part():
    assert score_controls(["exact_match"], *kinds({"cat": LEAST - 1}, 1.0)) == {}
    questions, said, truth = kinds(Counter(cat=9000, dog=3000), 1.0)
    found = score_controls(["exact_match"], questions, said, truth)
    assert found[GUESS]["exact_match"] == 0.75
    assert found[OTHERS]["exact_match"] == pytest.approx(0.75**2 + 0.25**2, abs=0.03)

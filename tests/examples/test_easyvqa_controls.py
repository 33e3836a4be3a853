import pytest

from examples.easyvqa.controls import learn_best_guesses, score_best_guesses


def rows(*pairs):
    return [{"inputs": question, "outputs": answer} for question, answer in pairs]


TRAIN = rows(
    ("color?", "red"), ("color?", "red"), ("color?", "blue"), ("shape?", "circle"), ("tie?", "b"), ("tie?", "a")
)


def test_the_most_frequent_answer_to_a_question_is_its_best_guess():
    assert learn_best_guesses(TRAIN) == {"color?": "red", "shape?": "circle", "tie?": "a"}


def test_score_is_the_part_that_the_guess_gets_right_and_unknown_questions_are_wrong():
    test = rows(("color?", "red"), ("color?", "blue"), ("shape?", "circle"), ("new?", "red"))
    assert score_best_guesses(TRAIN, test) == 0.5


def test_nothing_to_guess_is_an_error():
    with pytest.raises(ValueError, match="no row"):
        score_best_guesses(TRAIN, [])

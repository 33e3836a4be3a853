"""Which option an answer names, in the words that models choose."""

import pytest

from gitllm_plugin.metrics import option_accuracy
from gitllm_plugin.metrics.option_accuracy import named_options

RIGHT = "(D) a green bicycle"

NAMES_IT = [
    "D)",
    "d.",
    "[D]",
    "{D}",
    "（Ｄ）",
    "> D",
    "- **(D)**",
    "`D`",
    '"D"',
    "D: a green bicycle",
    "d) a green bicycle",
    "D - it has two wheels",
    "D because A is a car",
    "D a green bicycle",
    "D. a green bicycle\n\nOption A shows a car, (B) a boat.",
    "Answer: (D) a green bicycle",
    "ANSWER - D",
    "Answer\nD",
    '{"answer": "D"}',
    "The correct answer is option (D).",
    "The best choice would be d)",
    "The answer to this question is most likely D.",
    "Choice D",
    "alternative D is correct",
    "D is the right answer.",
    "It must be (D).",
    "i think it's d",
    "Sure, the answer is D",
    "I'd go with D",
    "So D",
    "D.a green bicycle",
    "D (a green bicycle)",
    "### D",
    "正确选项是D",
    "The answer's D",
    "D, not B",
    "(D) wrong colour",
    "(A), (B) and (C) are wrong. (D) is right.",
    "(A) is wrong, the answer is (D)",
    "Both A and C are wrong, so D",
    "The answer is D, not A.",
    "The answer is not A but D",
    "Let me see. A is a car. Final answer: D",
    r"The answer is $\boxed{D}$.",
    r"\boxed{\text{D}}",
    "<answer>D</answer>",
    "选D",
    "答案是D",
    "答案：（D）",
    "我选择D，因为有两个轮子",
    "D选项正确",
    "正解はD",
    "정답은 D",
    "Die Antwort lautet D",
    "La réponse est D",
    "La respuesta correcta es la D",
    "Ответ: D",
    "a green bicycle",
    "A green bicycle.",
    "The answer is a green bicycle",
]

DOES_NOT = [
    "",
    " \n",
    "C",
    "(C) a green bicycle",
    "D or B",
    "B / D",
    "D, B",
    "(B)(D)",
    "(B) or (D)",
    "D. B.",
    "A. B. C. D.",
    "(A) a car\n(D) a green bicycle",
    "Answer: B and D",
    r"\boxed{B, D}",
    "D: B",
    "Not D",
    "It is not D",
    "I don't think it's D",
    "The answer isn't D",
    "D is wrong",
    "(D) cannot be right",
    "D can't be it",
    "D isn't it",
    "D错了",
    "anything but D",
    "A is a car, D is a bicycle",
    "Maybe D. Maybe B.",
    "Between C and D, I choose C",
    "All except D",
    "the wrong option is D",
    "D. Actually the answer is C",
    "D? No, C.",
    "答案不是D",
    "C, because it is not D",
    "vitamin D",
    "a red bicycle(d)",
    "the D-day",
    "D's bicycle",
    "D flat",
    "Dd",
    "None of the above",
]


@pytest.mark.parametrize("text", NAMES_IT)
def test_an_option_that_is_named_is_found(text):
    assert option_accuracy([text], [[RIGHT]]) == [1.0]


@pytest.mark.parametrize("text", DOES_NOT)
def test_another_option_or_several_or_none_score_nothing(text):
    assert option_accuracy([text], [[RIGHT]]) == [0.0]


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("A", "(A) a car", 1),
        ("a", "(A) a car", 1),
        ("A car", "(A) truck", 0),  # an article
        ("A car", "(C) a car", 1),
        ("A car is parked", "(A) truck", 0),
        ("The answer is a car", "(A) truck", 0),
        ("The answer is A", "(A) truck", 1),
        ("A because it drives", "(A) truck", 1),
        ("I", "(I) truck", 1),
        ("I see a car", "(I) truck", 0),
        ("I think it is a car", "(I) truck", 0),
        ("E major", "(B) E major", 1),  # an option's text that begins with a letter
        ("E", "(B) E", 0),
        ("(B) E", "(B) E", 1),
        ("Hepatitis E", "(E) a virus", 0),
        ("the keys (s)", "the key(s)", 0),
        ("two key(s)", "three key(s)", 0),
        ("two key(s)", "(B) two key(s)", 1),
        ("(B) two key(s)", "two key(s)", 1),
        ("(B)", "two keys", 0),
        ("no", "No.", 1),
    ],
)
def test_letters_that_are_words_and_texts_that_have_letters(prediction, reference, expected):
    assert option_accuracy([prediction], [[reference]]) == [expected]


def test_the_options_that_are_named_can_be_asked_for():
    assert named_options("B or (d)") == {"B", "D"}
    assert named_options("Neither B nor D") == set()


def test_every_letter_and_reference_form_is_read_alike():
    for letter in "BCDEFGHJKLMNOPQRSTUVWXYZAI":
        for reference in (f"({letter}) it", f"{letter}. it", f"{letter}", f"[{letter}] it", f"{letter}: it"):
            assert option_accuracy([f"The answer is ({letter}).", f"{letter.lower()}"], [[reference]] * 2) == [1.0, 1.0]

"""VQA accuracy: how many annotators gave the predicted answer, after VQA's own normalisation (Antol et al., 2015).

The rules are those of the VQA challenge's evaluation, its slips included: scores are compared across articles.
"""

import re
from collections.abc import Sequence

from gitllm_plugin.metrics.registry import metric
from gitllm_plugin.metrics.texts import fold

# As they should be written; each is recognised when one of its apostrophes is missing.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
_SLIPS = {"somebody'd": "somebodyd"}
CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTIONS.split()
    for place, letter in enumerate(word)
    if letter == "'"
} | _SLIPS
"""A contraction without one of its apostrophes -> the contraction."""

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0", **{word: str(number) for number, word in enumerate(_DIGITS)}}
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_MAX_PERIODS = 32  # the original hands a flag over where the number of replacements belongs

_FEW = 4
"""With fewer references than this, agreement of three annotators cannot be asked for."""


@metric(
    "vqa_accuracy",
    "the VQA challenge's rules; with fewer than four references, a match with one of them",
    leads=("vqa",),
)
def vqa_accuracy(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Score by the mean over all annotators of min(1, n / 3), where n of the *others* gave the predicted answer.

    With fewer than four references, where this would give less than 1 to what all of them say, a prediction that
    equals one of them scores 1.

    Args:
        predictions: N texts.
        references: N lists of the annotators' answers, repeated as often as they were given (ten in VQA).

    Returns:
        N floats between 0 and 1.

    Raises:
        ValueError: when the lengths differ.
    """
    return [_accuracy(*pair) for pair in zip(predictions, references, strict=True)]


def normalize_vqa(text: str) -> str:
    """Write an answer in the form in which VQA's evaluation compares it."""
    return _normalize_words(_strip_punctuation(_on_one_line(text)))


def _accuracy(prediction: str, references: Sequence[str]) -> float:
    answers = [_on_one_line(reference) for reference in references]
    prediction = _on_one_line(prediction)
    if len(set(answers)) > 1 or len(answers) < _FEW:  # what all annotators agree on is compared as it stands
        answers, prediction = [normalize_vqa(answer) for answer in answers], normalize_vqa(prediction)
    matches = answers.count(prediction)
    if len(answers) < _FEW:
        return float(matches > 0)
    others = [matches - (answer == prediction) for answer in answers]
    return sum(min(1.0, count / 3) for count in others) / len(answers)


def _on_one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _strip_punctuation(text: str) -> str:
    has_thousands = re.search(r"\d,\d", text) is not None
    stripped = text
    for mark in _PUNCTUATION:
        at_an_end = f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if at_an_end or has_thousands else " ")
    return re.sub(r"\.(?!\d)", "", stripped, count=_MAX_PERIODS)


def _normalize_words(text: str) -> str:
    words = [_NUMBERS.get(word, word) for word in fold(text).split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)

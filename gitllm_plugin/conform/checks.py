"""The checks: each is a name, what it needs of the engine, and a function that asks a subject."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from gitllm_plugin.conform import readings
from gitllm_plugin.conform.asked import QUESTIONS, Asked
from gitllm_plugin.conform.engine import offers
from gitllm_plugin.conform.measure import Analysis, Answer, analyse
from gitllm_plugin.conform.readings import Fault, TextBefore
from gitllm_plugin.conform.report import Finding
from gitllm_plugin.conform.subject import FIRST_PICTURE, PICTURE_BEFORE, Subject

_NUM_BEAMS = 4
_BEAM_TOKENS = 6
_PADDING = ("behind the image", "in front of it, as zeros", "in front of it")
_GREEDY = "a search without beams finds the same"


@dataclass(frozen=True)
class Check:
    """A check.

    Attributes:
        name: in the report.
        needs: names of :data:`NEEDS`.
        call: asks.
    """

    name: str
    needs: tuple[str, ...]
    call: Callable[[Subject], Finding]

    def run(self, subject: Subject) -> Finding:
        """Ask, if the engine and the model have what is needed."""
        lacks = [why for need in self.needs if (why := NEEDS[need](subject))]
        return Finding("cannot be asked", said=lacks[0]) if lacks else self.call(subject)


CHECKS: dict[str, Check] = {}
"""By name, in the order of the report."""


def check(name: str, *, needs: Sequence[str] = ()) -> Callable[[Callable[[Subject], Finding]], Check]:
    """Register a function as a check."""

    def register(call: Callable[[Subject], Finding]) -> Check:
        CHECKS[name] = Check(name, tuple(needs), call)
        return CHECKS[name]

    return register


def _batches(subject: Subject) -> str:
    return "" if offers(subject.engine, "batches") else "the engine answers one question at a time"


def _beams(subject: Subject) -> str:
    return "" if offers(subject.engine, "beams") else "the engine has no search with beams"


def _several_images(subject: Subject) -> str:
    return "" if subject.reference.max_images > 1 else "this model reads one picture a question"


NEEDS: dict[str, Callable[[Subject], str]] = {
    "batches": _batches,
    "beams": _beams,
    "several images": _several_images,
}
"""What a check may need: gives why it is not there, or nothing."""


@check("mask: an image sees all of itself")
def image_sees_itself(subject: Subject) -> Finding:
    """Attention within the image is not causal."""
    return _of_reading(subject.reading, readings.image_causal)


@check("mask: an image sees no text")
def image_sees_no_text(subject: Subject) -> Finding:
    """Image states are the same whatever is asked."""
    return _of_reading(subject.reading, readings.image_sees_text, readings.all_bidirectional)


@check("mask: text sees the image")
def text_sees_image(subject: Subject) -> Finding:
    """Prompt and answer see the whole image."""
    return _of_reading(subject.reading, readings.text_without_image, readings.answer_without_image)


@check("mask: text sees no later text")
def text_is_causal(subject: Subject) -> Finding:
    """The prompt is read causally."""
    return _of_reading(subject.reading, readings.text_bidirectional, readings.all_bidirectional)


@check("positions")
def positions(subject: Subject) -> Finding:
    """Text stands behind the image, and an answer behind its prompt."""
    faults = (readings.text_moved, readings.text_from_zero, readings.answer_moved)
    return _of_reading(subject.reading, *faults)


@check("padding", needs=("batches",))
def padding(subject: Subject) -> Finding:
    """Questions of different lengths, asked together, have the answers of each alone."""
    questions = subject.questions
    longest = max(len(each.ids) for each in questions)
    seen = [subject.reference.padding_seen(longest - len(each.ids)) for each in questions]
    wrong = {
        f"padding is seen ({place})": [
            subject.right(each, fault) for each, fault in zip(questions, faults, strict=True)
        ]
        for place, faults in zip(_PADDING, zip(*seen, strict=True), strict=False)
    }
    return _in_company(subject, questions, subject.found(questions), wrong)


@check("batch: other pictures", needs=("batches",))
def batch_of_pictures(subject: Subject) -> Finding:
    """The same question about different pictures, asked together, has the answers of each alone."""
    questions = subject.one_question
    right = [subject.right(each) for each in questions]
    neighbours = {"the answers are about the pictures of others": [*right[1:], right[0]]}
    return _in_company(subject, questions, subject.found(questions), neighbours)


@check("batch: one picture", needs=("batches",))
def batch_about_one_picture(subject: Subject) -> Finding:
    """Several questions about one picture, asked together with one about another, have the answers of each alone."""
    first, second = _telling_pair(subject)
    moved = subject.about(first.pictures, second)
    questions = [first, moved, second]
    wrong = [subject.right(each) for each in (subject.about(second.pictures, first), second, moved)]
    found = subject.found(questions)
    return _in_company(subject, questions, found, {"the pictures are those of other questions": wrong})


@check("cache: a second question about a picture")
def second_question(subject: Subject) -> Finding:
    """A question about a picture that is known has the answer that it has alone."""
    found: list[Answer] = []
    questions: list[Asked] = []
    wrong: list[Answer] = []
    for each in subject.questions:
        text = QUESTIONS[(QUESTIONS.index(each.question) + 1) % len(QUESTIONS)]
        before = subject.reference.asking.ask(each.pictures, text).followed_by(each.then)
        subject.forget()
        subject.found([before])
        found += subject.found([each])
        questions.append(each)
        wrong.append(subject.right(each, TextBefore(before.ids)))
    return _in_company(subject, questions, found, {"the question before is still there": wrong})


@check("cache: another picture")
def another_picture(subject: Subject) -> Finding:
    """A question about a picture has its answer whatever picture was asked about before."""
    subject.forget()
    # One after another, and back to the first.
    questions = [*subject.one_question, *subject.one_question[:1]]
    found = [subject.found([each])[0] for each in questions]
    right = [subject.right(each) for each in questions]
    before = {PICTURE_BEFORE: [right[0], *right[:-1]], FIRST_PICTURE: [right[0]] * len(right)}
    finding = _in_company(subject, questions, found, before)
    # Where nothing is ever forgotten, one question alone shows it too.
    if finding.status != "differs" and (stale := subject.blamed & {FIRST_PICTURE, PICTURE_BEFORE}):
        return Finding("differs", subject.reading[0].difference, str(stale.pop()))
    return finding


@check("images: several in one question", needs=("several images",))
def several_images(subject: Subject) -> Finding:
    """Pictures of one question see each other, in their order."""
    questions = subject.about_several(2)
    faults: tuple[Fault, ...] = (readings.images_apart, *readings.ALONE)
    return _of_reading(subject.read(questions, faults), readings.images_apart)


@check("images: one beside several", needs=("several images", "batches"))
def one_beside_several(subject: Subject) -> Finding:
    """Questions about one and about two pictures, asked together, have the answers of each alone."""
    one, several = subject.questions[0], subject.about_several(2)[0]
    questions = [one, several]
    wrong = [subject.right(subject.about(several.pictures, one)), subject.right(subject.about(one.pictures, several))]
    return _in_company(subject, questions, subject.found(questions), {"pictures are missing, or of others": wrong})


@check("beams", needs=("beams",))
def beams(subject: Subject) -> Finding:
    """A search with beams finds an answer as likely as a search by brute force does, and says how likely it is."""
    reference, questions = subject.reference, subject.questions
    off = short = told = 0.0
    found = subject.search(questions, _NUM_BEAMS, _BEAM_TOKENS)
    for asked, (tokens, likelihood) in zip(questions, found, strict=True):
        right = reference.likelihood(asked, tokens)
        best = reference.likelihood(asked, reference.beams(asked, _NUM_BEAMS, _BEAM_TOKENS))
        greedy = reference.likelihood(asked, reference.tokens(asked, _BEAM_TOKENS, ends=False))
        off = max(off, abs(reference.share(asked, tokens, likelihood) - right))
        short, told = max(short, best - right), max(told, best - greedy)
    difference = max(off, short)
    if off > subject.tolerance:
        return Finding("differs", difference, "what it finds is not as likely as it says")
    if short > subject.tolerance:
        return Finding("differs", difference, "what it finds is less likely than what a search by brute force finds")
    return Finding("holds", difference) if told > 0 else Finding("cannot be told", difference, _GREEDY)


def _telling_pair(subject: Subject) -> tuple[Asked, Asked]:
    """Find two questions about different pictures of which the second has another answer about the first's."""
    pairs = [pair for pair in permutations(subject.questions, 2) if pair[0].pictures is not pair[1].pictures]
    for first, second in pairs:
        moved = subject.about(first.pictures, second)
        if subject.is_sure(moved) and not np.array_equal(subject.right(moved), subject.right(second)):
            return first, second
    return pairs[0]


def _of_reading(ways: Sequence[Analysis], *faults: Fault) -> Finding:
    """Judge what was found by the faults that a check looks for."""
    difference = max(way.difference for way in ways)
    for way in ways:
        if way.blamed in faults:
            return Finding("differs", way.difference, _said(way.blamed))
    wrong = [way for way in ways if not way.is_right]
    if any(way.blamed is None for way in wrong):
        return Finding("differs", difference, "something else is computed, by no fault that is known here")
    if wrong:
        return Finding("cannot be told", difference, f"beside this: {_said(wrong[0].blamed)}")
    if all(fault in way.untold for fault in faults for way in ways):
        return Finding("cannot be told", difference, "in this model it would make too little difference")
    return Finding("holds", difference)


def _in_company(
    subject: Subject,
    questions: Sequence[Asked],
    found: Sequence[Answer],
    wrong: Mapping[str, Sequence[Answer]],
) -> Finding:
    """Judge answers to questions that were not asked alone."""
    analysis = analyse(found, [subject.baseline(each) for each in questions], wrong, subject.tolerance_in_company)
    if not analysis.is_right:
        said = "" if analysis.blamed is None else _said(analysis.blamed)
        return Finding("differs", analysis.difference, said or "the answers are others than those of each alone")
    if all(fault in analysis.untold for fault in wrong):
        return Finding("cannot be told", analysis.difference, "in this model it would make too little difference")
    return Finding("holds", analysis.difference)


def _said(fault: Hashable) -> str:
    said = fault if isinstance(fault, str) else (fault.__doc__ or "").splitlines()[0].rstrip(".")
    return said[:1].lower() + said[1:]

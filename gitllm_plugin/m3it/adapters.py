"""From a row of M3IT's files, in whatever form, to its images and texts. One function per form.

An adapter takes the row (a JSON object) and what lies beside its file, and says which images it has, as they are in
the row, and which questions and answers there are about them. What else is true of a form (an example of it, whether
its rows have instructions or ids of their own) stands in the decorator of its function, and nowhere else. Identifiers,
instructions, base64 and checks are the same for all and are done in :mod:`gitllm_plugin.m3it.rows`.

Keys are looked up under the names that M3IT's authors used for one thing (``img_str``, ``image_str``, ...), so that
one function, :func:`plain`, reads most configurations.
"""

import random
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gitllm_plugin.m3it.dialogues import read_pairs, split_dialogue
from gitllm_plugin.m3it.problems import RowError

# Of several names that a row has the first counts: a paraphrased answer is a sentence, `answer` beside it one word.
IMAGE_KEYS = ("image_base64_str", "image_str", "img_str", "image", "images")
QUESTION_KEYS = ("inputs", "input", "question", "history", "context")
ANSWER_KEYS = ("outputs", "output", "paraphrased_answer", "answer", "answers", "response", "caption", "captions")

UNIFORM_IMAGE = "image_base64_str"
UNIFORM_KEYS = ("instruction", "inputs", UNIFORM_IMAGE, "outputs")

IMAGE = "<base64>"
"""Stands in the examples of adapters for an image file's base64 text."""

HYPOTHESIS = "[HYPO]"
"""Stands in snli-ve's instructions where the row's hypothesis belongs."""

NUM_OPTIONS = 10

_ENTAILMENT = {"entailment": "yes", "contradiction": "no", "neutral": "maybe"}


@dataclass(frozen=True)
class Draft:
    """One question about a row's images and its answers, before it has an id.

    Attributes:
        question: may be empty.
        answers: as the row has them: a text or a list of texts, checked later.
        instruction: the row's own; None where one is drawn from the configuration's.
        complete: changes the instruction, where something of the row belongs in it.
        turns: of a conversation, questions and answers before this one.
        rejected: as the row has it: a text that the answer is preferred to, or None.
    """

    question: Any
    answers: Any
    instruction: Any = None
    complete: Callable[[str], str] | None = None
    turns: tuple[tuple[Any, Any], ...] = ()
    rejected: Any = None


@dataclass(frozen=True)
class Parsed:
    """A row's images, as they are in it (base64 text or bytes, one or a list, or None), and its texts."""

    images: Any
    drafts: Sequence[Draft]


@dataclass(frozen=True)
class Beside:
    """What an adapter may need besides the row.

    Attributes:
        labels: class names by number, and by name where the file has names (``mapping.txt`` of imagenet).
        generator: seeded with the row's id, so that what is drawn does not depend on other rows.
    """

    labels: Mapping[Any, str]
    generator: random.Random


Read = Callable[[Mapping[str, Any], Beside], Parsed]


@dataclass(frozen=True)
class Adapter:
    """A form of rows.

    Attributes:
        name: by which the catalog knows it.
        read: takes a row and what lies beside it; raises RowError for a row of another form.
        example: a row of this form with :data:`IMAGE` for its images. Tests of every configuration of the catalog read
            it from a file, unless they know the configuration's rows better.
        gives: question and answer, or accepted answers, of the example's first text; None where they depend on what
            lies beside the row.
        has_instructions: whether the rows have their instructions; else one is drawn from ``instructions.json``
            beside their file.
        has_ids: whether a row may have an ``id`` of its own.
        needs_labels: whether class names are read from ``mapping.txt`` beside the file.
    """

    name: str
    read: Read = field(repr=False)
    example: Mapping[str, Any] = field(repr=False)
    gives: tuple[str, str | tuple[str, ...]] | None = None
    has_instructions: bool = False
    has_ids: bool = False
    needs_labels: bool = False


ADAPTERS: dict[str, Adapter] = {}
"""Every adapter by name."""


def adapter(**facts: Any) -> Callable[[Read], Adapter]:
    """Enter a function into :data:`ADAPTERS` under its name, with the facts of :class:`Adapter` about its form."""

    def register(read: Read) -> Adapter:
        ADAPTERS[read.__name__] = Adapter(read.__name__, read, **facts)
        return ADAPTERS[read.__name__]

    return register


@adapter(
    example={"image_base64_str": IMAGE, "inputs": "what is it?", "outputs": "a cat"},
    gives=("what is it?", "a cat"),
)
def plain(row: Mapping[str, Any], beside: Beside) -> Parsed:
    """Read image, question and answer under any of their names."""
    draft = Draft(_question(row), _as_text(get(row, ANSWER_KEYS)), row.get("instruction"))
    return Parsed(get(row, IMAGE_KEYS), [draft])


@adapter(
    example={"image_base64_str": IMAGE, "inputs": "Q: what is it? A: a cat Q: is it asleep?", "outputs": "yes"},
    gives=("is it asleep?", "yes"),
)
def dialogue(row: Mapping[str, Any], beside: Beside) -> Parsed:
    """Read a question and its answer, and as turns what the text, a list or ``history`` beside it says before."""
    asked = get(row, QUESTION_KEYS)
    turns, question = split_dialogue(asked, None if asked is row.get("history") else row.get("history"))
    draft = Draft(question, _as_text(get(row, ANSWER_KEYS)), row.get("instruction"), turns=turns)
    return Parsed(get(row, IMAGE_KEYS), [draft])


@adapter(example={"image_str": IMAGE, "answer": "a cat"}, gives=("", "a cat"))
def caption(row: Mapping[str, Any], beside: Beside) -> Parsed:
    """Read an image and one or several texts about it, each an example; often there is no question."""
    question = _question(row) if any(key in row for key in QUESTION_KEYS) else ""
    # An empty list stays one text without an answer, so that the row is told and not passed over.
    captions = get(row, ANSWER_KEYS)
    if not isinstance(captions, list) or not captions:
        captions = [captions]
    drafts = [Draft(question, _as_text(text), row.get("instruction")) for text in captions]
    return Parsed(get(row, IMAGE_KEYS), drafts)


@adapter(example={"image": IMAGE, "meta": {"targets": ["a cat", "one cat"]}}, gives=("", "a cat"))
def coco(row: Mapping[str, Any], beside: Beside) -> Parsed:
    """Read one image with five or more captions in ``meta.targets``, each an example of its own."""
    targets = get(get(row, ("meta",)), ("targets",), "meta")
    if not isinstance(targets, list) or not targets:
        raise RowError("wrong_value", f"'meta.targets' is {targets!r:.40}, expected a list of captions")
    return Parsed(get(row, ("image",)), [Draft("", target) for target in targets])


@adapter(
    example={
        "img_str": IMAGE,
        "question": "who?",
        "paraphrased_answer": "This is not answerable.",
        "original_answer": "Ann",
    },
    gives=("who?", "The answer is Ann"),
)
def vqa_v2(row: Mapping[str, Any], beside: Beside) -> Parsed:
    """Read the answer in a sentence of its own, or the bare answer where that sentence says there is none."""
    answer = get(row, ("paraphrased_answer",))
    # Whoever rephrased the answers found some questions unanswerable; their original answers are good all the same.
    if isinstance(answer, str) and "not answerable" in answer.lower():
        answer = f"The answer is {_said(row, 'original_answer', 'answer')}"
    return Parsed(get(row, ("img_str",)), [Draft(get(row, ("question",)), answer)])


@adapter(
    example={"image_str": IMAGE, "question": "who?", "answer": "Ann", "rationale": "She waves."},
    gives=("who?", "She waves. So the answer is Ann."),
)
def paraphrased(row: Mapping[str, Any], beside: Beside) -> Parsed:
    """Read the answer in a sentence of its own; in older files a short one, with its rationale if there is one."""
    if "paraphrased_answer" in row:
        answer = row["paraphrased_answer"]
    else:
        answer = f"The answer is {_said(row, 'answer')}."
        if row.get("rationale"):
            # The reason first, and the answer's sentence follows from it.
            answer = f"{_said(row, 'rationale')} So t{answer[1:]}"
    return Parsed(get(row, IMAGE_KEYS), [Draft(_question(row), answer)])


@adapter(example={"img_str": IMAGE, "input": "who?", "output": "Ann"}, gives=("who?", "The answer is Ann."))
def answer_sentence(row: Mapping[str, Any], beside: Beside) -> Parsed:
    """Read a short answer, and put it into a sentence unless it is one."""
    answer = _as_text(get(row, ANSWER_KEYS))
    if isinstance(answer, str) and answer.strip() and not answer.rstrip().endswith("."):
        answer = f"The answer is {answer}."
    return Parsed(get(row, IMAGE_KEYS), [Draft(_question(row), answer)])


@adapter(
    example={"img_str": IMAGE, "question": "is it red?", "answer": "true"},
    gives=("is it red?", "The answer is yes."),
)
def shapes(row: Mapping[str, Any], beside: Beside) -> Parsed:
    """Read whether a statement is true, in words."""
    # The bare `answer` before a paraphrase of it, since it is put into a sentence here.
    answer = get(row, ("answer", *ANSWER_KEYS))
    words = {"true": "yes", "false": "no"}
    answer = words.get(str(answer).lower(), answer)
    if isinstance(answer, str) and answer in words.values():
        answer = f"The answer is {answer}."
    return Parsed(get(row, IMAGE_KEYS), [Draft(_question(row), answer)])


@adapter(
    example={
        "image_base64_str": IMAGE,
        "hypothesis": "a cat sleeps",
        "label": "neutral",
        "rationale": "It may only rest.",
    },
    gives=("", "maybe\nRationale: It may only rest."),
)
def snli_ve(row: Mapping[str, Any], beside: Beside) -> Parsed:
    """Read whether an image entails a hypothesis, and why. The hypothesis stands in the instruction."""
    hypothesis = _said(row, "hypothesis")
    key = next((key for key in ("answer", "label", "gold_label") if row.get(key) not in (None, "")), None)
    lines = [] if key is None else [_ENTAILMENT.get(_said(row, key).lower(), _said(row, key))]
    if row.get("rationale"):
        lines.append(f"Rationale: {_said(row, 'rationale')}" if lines else _said(row, "rationale"))
    elif not lines:
        get(row, ("rationale",))  # raises: a row with neither says nothing
    draft = Draft("", "\n".join(lines), complete=lambda text: _insert_hypothesis(text, hypothesis))
    return Parsed(get(row, IMAGE_KEYS), [draft])


@adapter(example={"img_str": IMAGE, "label": 0}, needs_labels=True)
def imagenet(row: Mapping[str, Any], beside: Beside) -> Parsed:
    """Ask which of ten classes: the right one at a random place among nine others."""
    name = _class_name(row, beside)
    if len(set(beside.labels.values())) < NUM_OPTIONS:
        raise RowError("wrong_value", f"mapping.txt has fewer than the {NUM_OPTIONS} classes that are asked about")
    # Sorted, since a set has another order in each process, and the others before the place: as in shards made before.
    others = beside.generator.sample(sorted(set(beside.labels.values()) - {name}), NUM_OPTIONS - 1)
    place = beside.generator.randrange(NUM_OPTIONS)
    options = [*others[:place], name, *others[place:]]
    lines = [f"({letter}) {option}" for letter, option in zip(string.ascii_uppercase, options, strict=False)]
    return Parsed(get(row, IMAGE_KEYS), [Draft("\n".join(lines), lines[place])])


@adapter(example={"img_str": IMAGE, "label": 0}, needs_labels=True)
def imagenet_open(row: Mapping[str, Any], beside: Beside) -> Parsed:
    """Ask which class, without options."""
    return Parsed(get(row, IMAGE_KEYS), [Draft("", _class_name(row, beside))])


@adapter(example={"images": [IMAGE, IMAGE], "sentences": ["One.", "Two."]}, gives=("", "One. Two."))
def vist(row: Mapping[str, Any], beside: Beside) -> Parsed:
    """Read a story of several images, one sentence each."""
    sentences = get(row, ("sentences",))
    if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
        raise RowError("wrong_value", f"'sentences' is {sentences!r:.40}, expected a list of texts")
    return Parsed(get(row, ("images",)), [Draft("", " ".join(sentences))])


@adapter(
    example={"image_str": IMAGE, "question": "it is on the mat", "answer": "True"},
    gives=("it is on the mat", "True"),
)
def vsr(row: Mapping[str, Any], beside: Beside) -> Parsed:
    """Read whether a statement is true; the instruction names the options."""
    answer = _as_text(get(row, ANSWER_KEYS))
    draft = Draft(_question(row), answer, complete=lambda text: f"{text} Options: True or False.")
    return Parsed(get(row, IMAGE_KEYS), [draft])


@adapter(
    example={
        "answer": "a cat",
        "meta": {"instruction": "Answer.", "inputs": "what is it?", "image_base64_str": [IMAGE]},
    },
    gives=("what is it?", "a cat"),
    has_instructions=True,
)
def rephrased(row: Mapping[str, Any], beside: Beside) -> Parsed:
    """Read a copy in other words: the new answer, and the row it was made from in ``meta``."""
    meta = get(row, ("meta",))
    draft = Draft(
        get(meta, ("inputs",), "meta"), get(row, ("answer",)), instruction=get(meta, ("instruction",), "meta")
    )
    return Parsed(get(meta, ("image_base64_str",), "meta"), [draft])


@adapter(
    example={"id": "1", "instruction": "Answer.", "inputs": "who?", "image_base64_str": IMAGE, "outputs": "Ann"},
    gives=("who?", "Ann"),
    has_instructions=True,
    has_ids=True,
)
def uniform(row: Mapping[str, Any], beside: Beside) -> Parsed:
    """Read the schema that every configuration has once the ``datasets`` library has loaded it.

    A parquet conversion has ``image`` in the place of ``image_base64_str``, with the file's bytes or a mapping that
    has them. Of a conversation, ``turns`` holds what follows on the first question and answer; each turn is a text.
    ``rejected`` is an answer that is worse than ``outputs``; in a conversation worse than its last one, which alone is
    a text then.
    """
    # All that is missing at once: these are the rows that people write themselves.
    missing = [repr(key) for key in UNIFORM_KEYS if key not in row and not (key == UNIFORM_IMAGE and "image" in row)]
    if missing:
        raise RowError("missing_key", f"missing {', '.join(missing)}; the row has {_list_keys(row)}")
    images = row[UNIFORM_IMAGE] if UNIFORM_IMAGE in row else row["image"]
    first = Draft(row["inputs"], row["outputs"], row["instruction"])
    drafts = [first, *_later_turns(first, row.get("turns"))]
    if row.get("rejected") is not None:
        drafts = [replace(drafts[-1], rejected=row["rejected"])]
    return Parsed(images, drafts)


def _later_turns(first: Draft, turns: Any) -> list[Draft]:
    """Read what follows on the first question and answer of a conversation; each turn knows those before it."""
    answer = first.answers[0] if isinstance(first.answers, list) and first.answers else first.answers
    said = [(first.question, answer), *((question, answer) for question, answer in read_pairs(turns))]
    return [
        Draft(question, answer, first.instruction, turns=tuple(said[:number]))
        for number, (question, answer) in enumerate(said)
        if number
    ]


def get(row: Any, keys: Sequence[str], where: str = "row") -> Any:
    """Return the value under the first of the keys that the row has.

    Raises:
        RowError: of kind ``missing_key``, naming the keys that were looked for and those that are there.
    """
    if not isinstance(row, Mapping):
        raise RowError("wrong_value", f"'{where}' is {row!r:.40}, expected an object")
    for key in keys:
        if key in row:
            return row[key]
    wanted = " or ".join(map(repr, keys))
    raise RowError("missing_key", f"missing {wanted}; the {where} has {_list_keys(row)}")


def _list_keys(row: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, row)) or "no keys"


def _question(row: Mapping[str, Any]) -> Any:
    """Find the question; the turns of a dialogue become lines."""
    question = get(row, QUESTION_KEYS)
    if isinstance(question, list) and all(isinstance(turn, str) for turn in question):
        return "\n".join(question)
    return question


def _as_text(answer: Any) -> Any:
    """Turn numbers, the answers of counting questions, into text; all else stays."""
    is_number = isinstance(answer, (int, float)) and not isinstance(answer, bool) and answer == answer  # not NaN
    return str(answer) if is_number else answer


def _said(row: Mapping[str, Any], *keys: str) -> str:
    """Read what is put into a sentence: a text, or what JSON writes without quotes; anything else says nothing."""
    value = get(row, keys)
    if isinstance(value, (str, int, float)) and value == value and str(value).strip():
        return str(value)
    raise RowError("wrong_value", f"{' or '.join(map(repr, keys))} is {value!r:.40}, expected text")


def _insert_hypothesis(instruction: str, hypothesis: str) -> str:
    if HYPOTHESIS in instruction:
        return instruction.replace(HYPOTHESIS, hypothesis)
    # Not all of the configuration's instructions have the mark, and without the hypothesis there is no question.
    return f"{instruction} {hypothesis}"


def _class_name(row: Mapping[str, Any], beside: Beside) -> str:
    label = get(row, ("label",))
    # Some files have the number of the class as text. To Python, True is 1.
    usable = isinstance(label, (str, int, float)) and not isinstance(label, bool)
    name = beside.labels.get(label, beside.labels.get(str(label))) if usable else None
    if name is None:
        known = len(set(beside.labels.values()))
        raise RowError("wrong_value", f"'label' is {label!r:.40}, none of the {known} classes in mapping.txt")
    return name

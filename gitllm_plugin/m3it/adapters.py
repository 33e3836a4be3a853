"""From a row of M3IT's files, in whatever form, to its images and texts. One function per form.

An adapter takes the row (a JSON object) and what lies beside its file, and says which images it has, as they are in
the row, and which questions and answers there are about them. Identifiers, instructions, base64 and checks are the
same for all and are done in :mod:`gitllm_plugin.m3it.rows`.

Keys are looked up under the names that M3IT's authors used for one thing (``img_str``, ``image_str``, ...), so that
one function, :func:`plain`, reads most configurations.
"""

import random
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gitllm_plugin.m3it.problems import RowError

IMAGE_KEYS = ("image_base64_str", "image_str", "img_str", "image", "images")
QUESTION_KEYS = ("inputs", "input", "question", "history", "context")
ANSWER_KEYS = ("outputs", "output", "paraphrased_answer", "answer", "answers", "response", "caption", "captions")

UNIFORM_IMAGE = "image_base64_str"
UNIFORM_KEYS = ("instruction", "inputs", UNIFORM_IMAGE, "outputs")

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
        complete: changes the instruction, where a part of the row belongs in it.
    """

    question: Any
    answers: Any
    instruction: Any = None
    complete: Callable[[str], str] | None = None


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


Adapter = Callable[[Mapping[str, Any], Beside], Parsed]


def plain(row: Mapping[str, Any], beside: Beside) -> Parsed:
    """Image, question and answer under any of their names."""
    draft = Draft(_question(row), _as_text(get(row, ANSWER_KEYS)), row.get("instruction"))
    return Parsed(get(row, IMAGE_KEYS), [draft])


def caption(row: Mapping[str, Any], beside: Beside) -> Parsed:
    """An image and a text about it, or several, each an example; without a question the instruction says it all."""
    question = _question(row) if any(key in row for key in QUESTION_KEYS) else ""
    captions = get(row, ANSWER_KEYS)
    if not isinstance(captions, list) or not captions:
        captions = [captions]
    drafts = [Draft(question, _as_text(text), row.get("instruction")) for text in captions]
    return Parsed(get(row, IMAGE_KEYS), drafts)


def coco(row: Mapping[str, Any], beside: Beside) -> Parsed:
    """One image with five or more captions in ``meta.targets``, each an example of its own."""
    targets = get(get(row, ("meta",)), ("targets",), "meta")
    if not isinstance(targets, list) or not targets:
        raise RowError("wrong_value", f"'meta.targets' is {targets!r:.40}, expected a list of captions")
    return Parsed(get(row, ("image",)), [Draft("", target) for target in targets])


def vqa_v2(row: Mapping[str, Any], beside: Beside) -> Parsed:
    """The answer in a sentence of its own, or the bare answer where that sentence says there is none."""
    answer = get(row, ("paraphrased_answer",))
    if isinstance(answer, str) and "not answerable" in answer.lower():
        answer = f"The answer is {get(row, ('original_answer', 'answer'))}"
    return Parsed(get(row, ("img_str",)), [Draft(get(row, ("question",)), answer)])


def paraphrased(row: Mapping[str, Any], beside: Beside) -> Parsed:
    """The answer in a sentence of its own; in older files a short answer, with its rationale if there is one."""
    if "paraphrased_answer" in row:
        answer = row["paraphrased_answer"]
    else:
        answer = f"The answer is {get(row, ('answer',))}."
        if row.get("rationale"):
            answer = f"{row['rationale']} So t{answer[1:]}"
    return Parsed(get(row, IMAGE_KEYS), [Draft(_question(row), answer)])


def answer_sentence(row: Mapping[str, Any], beside: Beside) -> Parsed:
    """A short answer, which is put into a sentence unless it is one."""
    answer = _as_text(get(row, ANSWER_KEYS))
    if isinstance(answer, str) and answer.strip() and not answer.rstrip().endswith("."):
        answer = f"The answer is {answer}."
    return Parsed(get(row, IMAGE_KEYS), [Draft(_question(row), answer)])


def shapes(row: Mapping[str, Any], beside: Beside) -> Parsed:
    """Whether a statement is true, in words."""
    answer = get(row, ("answer", *ANSWER_KEYS))
    words = {"true": "yes", "false": "no"}
    answer = words.get(str(answer).lower(), answer)
    if isinstance(answer, str) and answer in words.values():
        answer = f"The answer is {answer}."
    return Parsed(get(row, IMAGE_KEYS), [Draft(_question(row), answer)])


def snli_ve(row: Mapping[str, Any], beside: Beside) -> Parsed:
    """Whether an image entails a hypothesis, and why. The hypothesis stands in the instruction."""
    hypothesis = get(row, ("hypothesis",))
    label = next((row[key] for key in ("answer", "label", "gold_label") if row.get(key) is not None), None)
    parts = [] if label is None else [_ENTAILMENT.get(str(label).lower(), str(label))]
    if row.get("rationale"):
        parts.append(f"Rationale: {row['rationale']}" if parts else row["rationale"])
    elif not parts:
        get(row, ("rationale",))
    draft = Draft("", "\n".join(map(str, parts)), complete=lambda text: _insert_hypothesis(text, hypothesis))
    return Parsed(get(row, IMAGE_KEYS), [draft])


def imagenet(row: Mapping[str, Any], beside: Beside) -> Parsed:
    """Which of ten classes: the right one at a random place among nine others."""
    name = _class_name(row, beside)
    others = beside.generator.sample(sorted(set(beside.labels.values()) - {name}), NUM_OPTIONS - 1)
    place = beside.generator.randrange(NUM_OPTIONS)
    options = [*others[:place], name, *others[place:]]
    lines = [f"({letter}) {option}" for letter, option in zip(string.ascii_uppercase, options, strict=False)]
    return Parsed(get(row, IMAGE_KEYS), [Draft("\n".join(lines), lines[place])])


def imagenet_open(row: Mapping[str, Any], beside: Beside) -> Parsed:
    """Which class, without options."""
    return Parsed(get(row, IMAGE_KEYS), [Draft("", _class_name(row, beside))])


def vist(row: Mapping[str, Any], beside: Beside) -> Parsed:
    """A story of several images, one sentence each."""
    sentences = get(row, ("sentences",))
    if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
        raise RowError("wrong_value", f"'sentences' is {sentences!r:.40}, expected a list of texts")
    return Parsed(get(row, ("images",)), [Draft("", " ".join(sentences))])


def vsr(row: Mapping[str, Any], beside: Beside) -> Parsed:
    """Whether a statement is true; the instruction names the options."""
    answer = _as_text(get(row, ANSWER_KEYS))
    draft = Draft(_question(row), answer, complete=lambda text: f"{text} Options: True or False.")
    return Parsed(get(row, IMAGE_KEYS), [draft])


def rephrased(row: Mapping[str, Any], beside: Beside) -> Parsed:
    """A copy in other words: the new answer, and the row it was made from in ``meta``."""
    meta = get(row, ("meta",))
    draft = Draft(
        get(meta, ("inputs",), "meta"), get(row, ("answer",)), instruction=get(meta, ("instruction",), "meta")
    )
    return Parsed(get(meta, ("image_base64_str",), "meta"), [draft])


def uniform(row: Mapping[str, Any], beside: Beside) -> Parsed:
    """The schema that every configuration has once the ``datasets`` library has loaded it.

    A parquet conversion has ``image`` in the place of ``image_base64_str``, with the file's bytes or a mapping that
    has them.
    """
    missing = [repr(key) for key in UNIFORM_KEYS if key not in row and not (key == UNIFORM_IMAGE and "image" in row)]
    if missing:
        raise RowError("missing_key", f"missing {', '.join(missing)}; the row has {_list_keys(row)}")
    images = row[UNIFORM_IMAGE] if UNIFORM_IMAGE in row else row["image"]
    return Parsed(images, [Draft(row["inputs"], row["outputs"], row["instruction"])])


ADAPTERS: dict[str, Adapter] = {
    adapter.__name__: adapter
    for adapter in (
        plain,
        caption,
        coco,
        vqa_v2,
        paraphrased,
        answer_sentence,
        shapes,
        snli_ve,
        imagenet,
        imagenet_open,
        vist,
        vsr,
        rephrased,
        uniform,
    )
}
"""Every adapter by name."""


def get(row: Any, keys: Sequence[str], where: str = "row") -> Any:
    """The value under the first of the keys that the row has.

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
    """The question; the turns of a dialogue are lines."""
    question = get(row, QUESTION_KEYS)
    if isinstance(question, list) and all(isinstance(turn, str) for turn in question):
        return "\n".join(question)
    return question


def _as_text(answer: Any) -> Any:
    """Numbers, as answers of counting questions, become text; all else stays."""
    return str(answer) if isinstance(answer, (int, float)) and not isinstance(answer, bool) else answer


def _insert_hypothesis(instruction: str, hypothesis: Any) -> str:
    if HYPOTHESIS in instruction:
        return instruction.replace(HYPOTHESIS, str(hypothesis))
    return f"{instruction} {hypothesis}"


def _class_name(row: Mapping[str, Any], beside: Beside) -> str:
    label = get(row, ("label",))
    name = beside.labels.get(label, beside.labels.get(str(label)))
    if name is None:
        known = len(set(beside.labels.values()))
        raise RowError("wrong_value", f"'label' is {label!r:.40}, none of the {known} classes in mapping.txt")
    return name

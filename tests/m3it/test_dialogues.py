"""Dialogues in one text or list become turns, and rows of visual-dialog stay what they were by their own name."""

import json

import pytest
from PIL import Image

from gitllm_plugin.m3it.adapters import ADAPTERS, Beside
from gitllm_plugin.m3it.catalog import get_preset
from gitllm_plugin.m3it.dialogues import split_dialogue
from gitllm_plugin.m3it.examples import IndexedExamples
from gitllm_plugin.m3it.problems import RowError
from gitllm_plugin.m3it.prompts import Prompt, build_prompt, prompt_behind
from gitllm_plugin.m3it.rows import RowReader
from gitllm_plugin.m3it.scan import open_split
from gitllm_plugin.m3it.tree import find_tree
from tests.m3it_files import encode_png

TURNS = (("is the boat red?", "no"), ("how many people are in it?", "two"))
LAST = "are they fishing?"
FORMS = {
    "letters in one line": "Q: is the boat red? A: no Q: how many people are in it? A: two Q: are they fishing?",
    "letters in lines": "Q: is the boat red?\nA: no\nQ: how many people are in it?\nA: two\nQ: are they fishing?\nA:",
    "words": "Question: is the boat red? Answer: no question: how many people are in it? answer: two QUESTION: "
    "are they fishing? Answer:",
    "numbered": "Q1: is the boat red? A1: no Q2: how many people are in it? A2: two Q3: are they fishing?",
    "speakers": "Human: is the boat red?\nAssistant: no\nHuman: how many people are in it?\nAssistant: two\nHuman: "
    "are they fishing?\nAssistant:",
    "a list of texts": ["is the boat red?", "no", "how many people are in it?", "two", "are they fishing?"],
    "a list of marked texts": ["Q: is the boat red?", "A: no", "Q: how many people are in it? A: two", f"Q: {LAST}"],
    "a list of pairs": [["is the boat red?", "no"], ["how many people are in it?", "two"], ["are they fishing?"]],
    "a list of objects": [
        {"question": "is the boat red?", "answer": "no"},
        {"question": "how many people are in it?", "answer": "two"},
        {"question": "are they fishing?"},
    ],
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_gives_the_same_turns(form):
    assert split_dialogue(FORMS[form]) == (TURNS, LAST)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "letters in lines"])
def test_what_was_said_before_may_stand_beside_the_question(form):
    before = FORMS[form]
    before = before[:-1] if isinstance(before, list) else before[: before.lower().rindex("two") + 3]
    assert split_dialogue(LAST, before) == (TURNS, LAST)


def test_a_caption_in_front_belongs_to_the_first_question():
    turns, question = split_dialogue("A boat on a lake.\nQ: is it red? A: no Q: is it old?")
    assert (turns, question) == ((("A boat on a lake.\nis it red?", "no"),), "is it old?")
    assert split_dialogue("what is on the lake? A: a boat Q: is it old?")[0] == (("what is on the lake?", "a boat"),)


@pytest.mark.parametrize("text", ["what is it?", "Question: what is it?", "vitamin B: is it in the picture?", ""])
def test_a_question_alone_stays_as_it_is(text):
    assert split_dialogue(text) == ((), text)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("the sign at gate A: where does it lead?", "has the turns question, answer; expected"),
        ("Q: red? A: no A: yes Q: old?", "has the turns question, answer, answer, question; expected"),
        ("Q: red? Q: blue? A: no Q: old?", "has the turns question, question, answer, question; expected"),
        (["red?", "no"], "has the turns question, answer; expected"),
        (["a boat", "red?", "no", "old?"], "a question last"),
        (["red?", 3, "old?"], r"the dialogue is \['red\?', 3, 'old\?'\], expected a text, or a list"),
        ({"red?": "no"}, "expected a text, or a list of texts or pairs"),
        (7, "expected a text, or a list of texts or pairs"),
    ],
)
def test_what_is_no_dialogue_is_told(asked, message):
    with pytest.raises(RowError, match=message) as told:
        split_dialogue(asked)
    assert told.value.kind == "wrong_value"


def rows():
    image = encode_png(Image.new("RGB", (8, 8), "teal"))
    for number, form in enumerate(FORMS.values()):
        yield {"image_base64_str": image, "inputs": form, "outputs": f"answer {number}"}
    yield {"image_base64_str": image, "question": LAST, "history": FORMS["numbered"][:-21], "answer": "yes"}


@pytest.fixture
def tree(tmp_path):
    folder = tmp_path / "data" / "generation" / "visual_dialog"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    (folder / "instructions.json").write_text('["Answer the last question."]')
    return tmp_path


def read(tree, config):
    found = find_tree(tree, [config], ["train"])
    examples = IndexedExamples(open_split(found, found.splits[0], tree / "index"))
    return [examples[number].texts[0] for number in range(len(examples))]


def test_the_same_rows_are_read_in_two_ways(tree):
    plain, turned = read(tree, "visual-dialog"), read(tree, "visual-dialog-turns")
    assert (len(plain), len(turned)) == (len(FORMS) - 1, len(FORMS) + 1)  # lists of pairs and objects are no questions
    assert {text.id.partition("/")[0] for text in plain} == {"visual-dialog"}
    assert all(text.turns == () for text in plain) and plain[0].question == FORMS["letters in one line"]
    assert all((text.turns, text.question) == (TURNS, LAST) for text in turned)


def test_a_turn_is_what_a_conversation_gives():
    """The prompt, which is what training sees, of a row of one text and of one written in turns."""
    said = [*TURNS, (LAST, "yes")]
    uniform = {
        "instruction": "Look.",
        "inputs": said[0][0],
        "outputs": said[0][1],
        "turns": [list(pair) for pair in said[1:]],
        "image_base64_str": "x",
    }
    written = ADAPTERS["uniform"].read(uniform, Beside({}, None)).drafts[-1]
    dialogue = {"instruction": "Look.", "inputs": FORMS["speakers"], "outputs": "yes", "image_base64_str": "x"}
    read = ADAPTERS["dialogue"].read(dialogue, Beside({}, None)).drafts[0]
    prompts = [
        prompt_behind(
            draft.turns, draft.question, draft.instruction, lambda asked, told: build_prompt("plain", told, asked)
        )
        for draft in (written, read)
    ]
    assert prompts[0] == prompts[1] and prompts[0].turns == prompts[1].turns and isinstance(prompts[1], Prompt)
    assert len(prompts[1].turns) == 2 and (written.question, written.answers) == (read.question, read.answers)


def test_no_preset_takes_the_rows_twice():
    assert {"visual-dialog"} == {
        e.name for e in get_preset("all") if e.name in ("visual-dialog", "visual-dialog-turns")
    }
    reader = RowReader("visual-dialog-turns", "train", "dialogue", "train", instructions=("Answer.",))
    group, problems = reader.read(json.dumps(next(rows())).encode(), 1)
    assert not problems and group.texts[0].id == "visual-dialog-turns/train/1"

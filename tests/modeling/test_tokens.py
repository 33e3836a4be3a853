"""Prompts and answers to token ids: labels, conversations, and what is cut off when there is no room."""

import pickle
import random

import pytest
import torch
from tokenizers import AddedToken

from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.modeling import TextEncoder, find_chat_template
from gitllm_plugin.modeling.families import FAMILIES
from gitllm_plugin.modeling.fitting import TooLongError
from gitllm_plugin.modeling.tiny import tiny_tokenizer
from tests.modeling.tokenizers_of_all_kinds import KINDS, make_tokenizer

QUESTION = "what color is the shape in the image? " * 9
PROMPT = f"##Instruction: Answer. ##Question: {QUESTION}##Answer:"


@pytest.fixture
def encoder():
    return TextEncoder(tiny_tokenizer())


def text_of(encoder, batch, row=0):
    return encoder.tokenizer.decode(batch.input_ids[row][batch.attention_mask[row].bool()])


def test_a_prompt_has_the_same_ids_in_training_and_at_inference(encoder):
    prompt = "##Question: what color is the shape? ##Answer:"
    alone = encoder.prompts([prompt]).input_ids[0]
    trained = encoder.prompts_and_answers([prompt], ["red"])
    assert torch.equal(trained.input_ids[0, : len(alone)], alone)
    assert encoder.tokenizer.decode(trained.input_ids[0]) == f"{prompt} red</s>"


def test_labels_are_answer_and_end_token(encoder):
    batch = encoder.prompts_and_answers(["what color? Answer:", "x"], ["a red circle", "no"])
    kept = [encoder.tokenizer.decode(row[row != -100]) for row in batch.labels]
    assert kept == [" a red circle</s>", " no</s>"]
    everything = TextEncoder(encoder.tokenizer, loss_on="all").prompts_and_answers(["x"], ["no"])
    assert torch.equal(everything.labels, everything.input_ids)


def test_end_token_of_a_closing_tokenizer_does_not_stand_before_the_answer():
    tokenizer = tiny_tokenizer()
    from tokenizers.processors import TemplateProcessing

    end = (tokenizer.eos_token, tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[end])
    ids = TextEncoder(tokenizer).prompts_and_answers(["Answer:"], ["no"]).input_ids[0]
    assert (ids == tokenizer.eos_token_id).sum() == 1


@pytest.mark.parametrize("max_tokens", [20, 40, 60])
def test_only_the_end_of_the_question_is_cut_off(encoder, max_tokens):
    batch = encoder.prompts_and_answers([PROMPT, "x"], ["a red circle", "no"], [QUESTION, "x"], max_tokens)
    assert batch.num_truncated == 1
    assert batch.input_ids.shape[1] <= max_tokens
    text = text_of(encoder, batch)
    assert text.startswith("##Instruction: Answer. ##Question: what") and text.endswith("##Answer: a red circle</s>")
    assert batch.input_ids.shape[1] >= max_tokens - 6  # of the question as much as fits
    assert text_of(encoder, batch, 1) == "x no</s>"


def test_what_fits_is_left_alone(encoder):
    whole = encoder.prompts([PROMPT])
    size = whole.input_ids.shape[1]
    assert torch.equal(encoder.prompts([PROMPT], [QUESTION], size).input_ids, whole.input_ids)
    assert encoder.prompts([PROMPT], [QUESTION], size).num_truncated == 0
    assert encoder.prompts([PROMPT], [QUESTION], size - 1).num_truncated == 1


def test_without_a_question_the_whole_prompt_may_be_shortened(encoder):
    batch = encoder.prompts([PROMPT], None, 12)
    assert batch.input_ids.shape[1] <= 12 and text_of(encoder, batch).startswith("##Instruction")


def test_no_room_at_all_is_an_error(encoder):
    with pytest.raises(DataError, match="leaves no room for its question: .* 5 allowed beside image and answer"):
        encoder.prompts([PROMPT], [QUESTION], 5)


@pytest.mark.parametrize(
    "family", [family for family in FAMILIES.values() if family.chat_template], ids=lambda f: f.name
)
def test_the_answer_follows_the_assistant_s_mark(family):
    tokenizer = tiny_tokenizer()
    encoder = TextEncoder(tokenizer, chat_template=find_chat_template(tokenizer, family))
    batch = encoder.prompts_and_answers(["is it red?"], ["yes"])
    text = tokenizer.decode(batch.input_ids[0])
    before, answer = text.rsplit("yes", 1)
    assert answer == "</s>" and "is it red?" in before
    assert before == tokenizer.decode(encoder.prompts(["is it red?"]).input_ids[0]) + (
        "" if before[-1] == "\n" else " "
    )
    kept = batch.labels[0]
    assert tokenizer.decode(kept[kept != -100]).strip() == "yes</s>"


def test_a_template_that_writes_the_beginning_itself_gets_no_second_one():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ bos_token }}User: {{ messages[0]['content'] }}\nAssistant:"
    from tokenizers.processors import TemplateProcessing

    begin = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[begin])
    encoder = TextEncoder(tokenizer, chat_template=tokenizer.chat_template)
    ids = encoder.prompts(["is it red?"]).input_ids[0].tolist()
    assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id


# ---------------------------------------------------------------------------------------------- what ends an answer


def with_turns(end="<|end|>", special=True):
    """A tokenizer with a token that ends a turn."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(
        [AddedToken("<|user|>", special=True), AddedToken(end, special=special)], special_tokens=special
    )
    return tokenizer


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}<|user|>{{ m.content }}<|end|>\n{% endfor %}",
        "{% for m in messages %}{{ m.role }}\n{{ m.content | trim }}\n<|end|>{% endfor %}</s>",
        "{% for m in messages %}{{ m.content }} <|end|></s>{% endfor %}",
    ],
)
@pytest.mark.parametrize("special", [True, False])
def test_an_answer_ends_with_what_the_template_writes_behind_it(template, special):
    tokenizer = with_turns(special=special)
    encoder = TextEncoder(tokenizer, chat_template=template, end_tokens=(2, 7))
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert encoder.special_tokens == {"eos_token_id": [end, 2, 7], "pad_token_id": 0}
    batch = encoder.prompts_and_answers(["is <|end|> the end?"], ["it is <|end|>"])
    kept = batch.labels[0][batch.labels[0] != -100]
    assert kept[-1] == end and (kept == end).sum() == 1
    assert encoder.decode(kept[None]) == ["it is <|end|>"]


TURNS = "{{% for m in messages %}}{turn}{{% endfor %}}{{% if add_generation_prompt %}}{asked}{{% endif %}}"


@pytest.mark.parametrize(
    ("template", "joint"),
    [
        (TURNS.format(turn="[{{ m.role }}]{{ m.content }}", asked="[assistant]"), ""),
        (TURNS.format(turn="[{{ m.role }}] {{ m.content }}", asked="[assistant]"), " "),
        (TURNS.format(turn="{{ m.role }}:\n{{ m.content }}\n", asked="assistant:\n"), ""),
        ("{{ messages[0].content }} Answer:", " "),
    ],
    ids=["nothing", "a space", "a line break", "nothing is written"],
)
def test_an_answer_stands_where_the_template_writes_it(template, joint):
    encoder = TextEncoder(tiny_tokenizer(), chat_template=template)
    text = text_of(encoder, encoder.prompts_and_answers(["what color?"], ["a red circle"]))
    assert text == text_of(encoder, encoder.prompts(["what color?"])) + joint + "a red circle</s>"


@pytest.mark.parametrize(
    ("own", "more", "expected"), [(2, (2,), [2]), (2, (5, 2, 6), [2, 5, 6]), (None, (6, 5), [6, 5])]
)
def test_ends_are_those_of_tokenizer_and_model(own, more, expected):
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None if own is None else tokenizer.convert_ids_to_tokens(own)
    encoder = TextEncoder(tokenizer, end_tokens=more)
    assert encoder.special_tokens["eos_token_id"] == expected
    assert encoder.prompts_and_answers(["x"], ["no"]).input_ids[0, -1] == expected[0]


def test_a_tokenizer_without_end_token_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="neither the tokenizer nor .* has an end token.*eos_token"):
        TextEncoder(tokenizer)


def test_a_template_that_cannot_write_is_refused():
    template = "{{ raise_exception('only <|system|> first') }}"
    with pytest.raises(ConfigError, match="the chat template cannot write .*only <|system|> first"):
        TextEncoder(tiny_tokenizer(), chat_template=template)


# ------------------------------------------------------------------------------------------------- what is cut off


BLANKS = ["", " ", "\n", "\t", "\u00a0", "\u3000", "\r\n\r\n", " \t\n "]


@pytest.mark.parametrize("before", BLANKS)
@pytest.mark.parametrize("behind", BLANKS)
def test_the_mark_stays_whatever_stands_around_the_question(encoder, before, behind):
    question = before + "is the 狗 in the image brown or is it red? " * 9 + behind
    prompt = f"##Instruction: Answer. ##Question: {question.strip()} ##Answer:"
    for batch in (
        encoder.prompts([prompt], [question], 70),
        encoder.prompts_and_answers([prompt], ["it is red"], [question], 70),
    ):
        text = text_of(encoder, batch).removesuffix(" it is red</s>")
        assert text.endswith(" ##Answer:") and text.startswith("##Instruction: Answer. ##Question: is the 狗")
        assert batch.input_ids.shape[1] <= 70 and batch.num_truncated == 1


@pytest.mark.parametrize(
    ("prompt", "question", "kept"),
    [
        ("Question: " + "why " * 90 + "Answer:", None, " Answer:"),
        ("Is it so? " * 40 + "Short answer:", None, "Short answer:"),
        ("Describe it. " * 40 + "##Answer:", "", " ##Answer:"),
        ("##Question: " + "Answer: " * 60 + "##Answer:", "Answer: " * 60, " ##Answer:"),
        ("a dog: " * 60, None, ""),
    ],
)
def test_words_that_ask_for_the_answer_stay_where_no_place_is_given(encoder, prompt, question, kept):
    text = text_of(encoder, encoder.prompts([prompt], [question], 40))
    assert text.endswith(kept) and len(text) < len(prompt)


@pytest.mark.parametrize("chat", [None, "{% for m in messages %}[{{ m.role }}] {{ m.content }} [/]{% endfor %}[a]"])
def test_a_shortened_prompt_is_the_same_text_for_all(chat):
    encoder = TextEncoder(tiny_tokenizer(), chat_template=chat)
    place = slice(PROMPT.index(QUESTION), PROMPT.index(QUESTION) + len(QUESTION))
    for size in (50, 60, 75):
        text = encoder.shortened(PROMPT, place, size)
        assert torch.equal(encoder.prompts([PROMPT], [place], size).input_ids, encoder.prompts([text]).input_ids)
        assert text.endswith("##Answer:") and len(text) < len(PROMPT)
    assert encoder.shortened(PROMPT, place, 1000) == encoder.shortened(PROMPT, place) == PROMPT


def test_the_error_names_the_row_and_what_it_takes(encoder):
    prompts = ["x Answer:", f"{'Look at it. ' * 20}a question Answer:"]
    with pytest.raises(TooLongError, match="but with its answer, 40 allowed beside the image") as error:
        encoder.prompts_and_answers(prompts, ["no", "yes"], ["x", "a question"], 40)
    assert (error.value.row, error.value.allowed) == (1, 40)
    assert error.value.least == encoder.least_tokens(prompts[1], "yes", "a question")
    # With so much room it fits, and with one token less it does not.
    assert encoder.prompts_and_answers(prompts, ["no", "yes"], ["x", "a question"], error.value.least)
    with pytest.raises(TooLongError):
        encoder.prompts_and_answers(prompts, ["no", "yes"], ["x", "a question"], error.value.least - 1)
    again = pickle.loads(pickle.dumps(error.value))
    assert (str(again), again.row, again.least) == (str(error.value), 1, error.value.least)


@pytest.mark.parametrize("kind", KINDS)
def test_short_texts_are_known_to_fit_without_being_encoded(kind):
    encoder = TextEncoder(make_tokenizer(kind))
    chance = random.Random(1)
    for _ in range(50):
        words = [chance.choice(["dog", "é", "狗", "🙂", "<note>", "ﷺ", "½", "</s>", "x"]) for _ in range(9)]
        text = "".join(word + chance.choice(["", " ", "\n"]) for word in words)
        whole = encoder.prompts_and_answers([text], ["a dog"]).input_ids.shape[1]
        for enough in range(1, 300):
            assert encoder.least_tokens(text, "a dog", slice(0, 0), enough) in (enough, whole)
            if encoder.least_tokens(text, "a dog", slice(0, 0), enough) == enough:
                assert whole <= enough
                break


def test_an_empty_answer_is_the_end_alone(encoder):
    batch = encoder.prompts_and_answers(["what is written? Answer:", "Answer: "], ["", " \n"])
    for row, labels in enumerate(batch.labels):
        assert labels[labels != -100].tolist() == [2]
        assert text_of(encoder, batch, row) == ["what is written? Answer:</s>", "Answer:</s>"][row]

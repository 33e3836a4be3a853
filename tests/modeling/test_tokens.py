"""Prompts and answers to token ids: labels, conversations, and what is cut off when there is no room."""

import pytest
import torch

from gitllm_plugin.errors import DataError
from gitllm_plugin.modeling import TextEncoder, find_chat_template
from gitllm_plugin.modeling.families import FAMILIES
from gitllm_plugin.modeling.tiny import tiny_tokenizer

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

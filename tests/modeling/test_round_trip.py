"""Texts that hold whatever people write, special tokens among it, through tokenizers of every kind and back."""

import copy
import pickle
import random

import pytest
import torch
from transformers import ByT5Tokenizer

from gitllm_plugin.modeling import TextEncoder
from tests.modeling.tokenizers_of_all_kinds import CHATS, KINDS, LOSSLESS, make_tokenizer

WRITTEN = ["<s>", "</s>", "<pad>", "<unk>", "[SEP]", "[CLS]", "<|turn|>", "<|over|>", "<|im_end|>", "<0x0A>", "[/ASK]"]
WORDS = [
    "a",
    "dog",
    "Red",
    "7",
    "12.5",
    "isn't",
    "(A)",
    "é",
    "狗",
    "寝て",
    "Собака",
    "🙂",
    "¿qué?",
    "x!=y",
    "don't",
    "<b>",
]
BLANKS = [" ", " ", " ", " ", "  ", "\n", "\t", "\u00a0", "\u3000", "\r\n", ""]
ENDS = ["", "", " ", "  ", "\n", "\n\n", "\t", ":", ": ", "\u00a0"]


COUNTS = pytest.mark.parametrize("count", [30, pytest.param(1000, marks=pytest.mark.slow)])


def generate(count, written=True, seed=0):
    """Prompts and answers; ``written``: with special tokens in them."""
    chance = random.Random(seed)

    def text(most):
        words = [chance.choice(WRITTEN if written and chance.random() < 0.3 else WORDS) for _ in range(most)]
        return "".join(word + chance.choice(BLANKS) for word in words[: chance.randint(0, most)])

    return [(text(9) + chance.choice(["Answer:", "", "dog"]) + chance.choice(ENDS), text(5)) for _ in range(count)]


def batch_of(encoder, pairs):
    batch = encoder.prompts_and_answers(*map(list, zip(*pairs, strict=True)))
    lengths = batch.attention_mask.sum(1).tolist()
    starts = (batch.labels != -100).int().argmax(1).tolist()
    ids = [row[:length] for row, length in zip(batch.input_ids.tolist(), lengths, strict=True)]
    return list(zip(ids, starts, strict=True))


def rendered(encoder, prompt):
    """The text in front of an answer, with all that stands around the prompt."""
    if encoder.chat_template is None:
        return prompt
    said = [{"role": "user", "content": prompt}]
    return encoder.tokenizer.apply_chat_template(
        said, chat_template=encoder.chat_template, add_generation_prompt=True, tokenize=False
    )


def make(kind, chat):
    return TextEncoder(make_tokenizer(kind), chat_template=CHATS[chat])


@COUNTS
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_whole_text(kind, chat, count):
    encoder = make(kind, chat)
    for (prompt, answer), (ids, _) in zip(
        pairs := generate(count, written=False), batch_of(encoder, pairs), strict=True
    ):
        front, answer = rendered(encoder, prompt), answer.strip()
        between = "" if front[-1:].isspace() else " "
        if not answer:
            continue
        own = encoder.tokenizer(front + between + answer, add_special_tokens=False)["input_ids"]
        begin = [encoder.tokenizer.bos_token_id]
        assert ids == (own if own[:1] == begin else begin + own) + [encoder.ends[0]], (prompt, answer)


@COUNTS
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_no_special_token(kind, chat, count):
    encoder = make(kind, chat)
    special = set(encoder.tokenizer.all_special_ids) - {encoder.tokenizer.unk_token_id}
    pairs = generate(count)
    plain = [("dog", answer) for _, answer in pairs]
    frame = [number for number in batch_of(encoder, [("dog", "x")])[0][0] if number in special]
    for number, (ids, start) in enumerate([*batch_of(encoder, pairs), *batch_of(encoder, plain)]):
        assert [token for token in ids if token in special] == frame, (pairs + plain)[number]
        assert ids[-1] == encoder.ends[0] and ids[start:].count(encoder.ends[0]) == 1
    alone = encoder.prompts([prompt for prompt, _ in pairs])
    lengths = alone.attention_mask.sum(1).tolist()
    prompts = [row[:length] for row, length in zip(alone.input_ids.tolist(), lengths, strict=True)]
    for pair, own, (ids, start) in zip(pairs, prompts, batch_of(encoder, pairs), strict=True):
        assert ids[: len(own)] == own and start == len(own), pair


@COUNTS
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("kind", LOSSLESS)
def test_texts_come_back(kind, chat, count):
    encoder = make(kind, chat)
    pairs = generate(count)
    for (prompt, answer), (ids, start) in zip(pairs, batch_of(encoder, pairs), strict=True):
        assert encoder.decode(torch.tensor([ids[start:]])) == [answer.strip()]
        if chat == "none":
            between = "" if prompt[-1:].isspace() or not answer.strip() else " "
            assert encoder.decode(torch.tensor([ids])) == [(prompt + between + answer.strip()).strip()]


@COUNTS
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("kind", KINDS)
def test_candidates_are_encoded_as_they_follow_prompts(kind, chat, count):
    encoder = make(kind, chat)
    pairs = [pair for pair in generate(12 + count // 20) if pair[1].strip()]
    answers = [answer for _, answer in pairs[:12]]
    prompts = [prompt for prompt, _ in pairs]
    found = encoder.candidates(prompts, [answers] * len(prompts))
    for prompt, own in zip(prompts, found, strict=True):
        expected = [ids[start:] for ids, start in batch_of(encoder, [(prompt, answer) for answer in answers])]
        assert own == expected, prompt


def test_a_tokenizer_of_python_alone_reads_texts_as_texts():
    template = "{% for m in messages %}<extra_id_1>{{ m.content }}</s>{% endfor %}<extra_id_2>"
    for chat_template in (None, template):
        encoder = TextEncoder(ByT5Tokenizer(), chat_template=chat_template)
        (ids, start), *_ = batch_of(encoder, [("is </s> or <extra_id_1> there?", "</s>, yes")])
        assert encoder.decode(torch.tensor([ids[start:]])) == ["</s>, yes"]
        marks = 0 if chat_template is None else 1
        assert ids[start:].count(encoder.ends[0]) == 1 and ids[:start].count(encoder.ends[0]) == marks
        assert encoder.least_tokens("dog Answer:", "yes", "dog", enough=500) < 60  # counted: there is no bound


def test_what_is_no_unicode_is_encoded_too():
    for chat in CHATS:
        encoder = make("byte level", chat)
        batch = encoder.prompts_and_answers(["half \ud83d a pair"], ["the other \udd17 half"])
        assert "the other ? half" in encoder.tokenizer.decode(batch.input_ids[0])
        assert encoder.least_tokens("half \ud83d a pair", enough=10_000) == 10_000


@pytest.mark.parametrize("text", ["\U00100000 </s> \U00100001", "\U00100003<|turn|>", "\ue000 <s> \ue001\uf8ff"])
@pytest.mark.parametrize("chat", CHATS)
def test_characters_of_private_use_stay_characters(chat, text):
    encoder = make("byte level", chat)
    (ids, start), *_ = batch_of(encoder, [(text, text)])
    assert encoder.decode(torch.tensor([ids[start:]])) == [text] and text in encoder.tokenizer.decode(ids[:start])


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda encoder: pickle.loads(pickle.dumps(encoder))])
def test_a_copy_reads_texts_as_texts_too(duplicate):
    encoder = make("byte level", "lines")
    ids = encoder.prompts(["a </s> <|turn|>"]).input_ids
    assert torch.equal(duplicate(encoder).prompts(["a </s> <|turn|>"]).input_ids, ids)


def test_the_tokenizer_itself_is_left_as_it_was():
    encoder = make("byte level", "lines")
    before, size = encoder.tokenizer("a </s> <|turn|> b").input_ids, len(encoder.tokenizer)
    encoder.prompts_and_answers(["a </s> <|turn|> b"], ["</s>"])
    assert encoder.tokenizer("a </s> <|turn|> b").input_ids == before and len(encoder.tokenizer) == size

"""Tokenizers of every kind that language models have, trained on a few sentences."""

import json
from functools import lru_cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = [
    "A small dog sleeps under the wooden table; is it brown, or is it grey?",
    "Two people (a woman and her son) wait for the 7 o'clock train at platform 12.",
    "Answer: yes. Question: how many birds are there? There are 3 birds, aren't there!",
    "user assistant system image what where who why red blue green 0 1 2 3 4 5 6 7 8 9",
    "Ein Hund schläft. Un chien dort. 一只狗在睡觉。 犬が寝ている。 Собака спит.",
] * 3
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
_GPT4 = "|".join(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    )
)


def _byte_level(*before, prefix=False, use_regex=True, ignore_merges=False):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    split = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=use_regex)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, split]) if before else split
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def _sentence_piece_bpe(normalizer, pre_tokenizer, own_space):
    """As SentencePiece's BPE with bytes for what is not in the vocabulary (LLaMA 2, Mistral, Phi-3, Gemma)."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # words one by one, as it is trained
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=[*SPECIAL, *byte_tokens], show_progress=False)
    tokenizer.train_from_iterator([f" {sentence}" for sentence in SENTENCES], trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in SPECIAL]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    strip = [decoders.Strip(" ", 1, 0)] if own_space else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _unigram(prepend_scheme):
    """As SentencePiece's Unigram, in whose vocabulary special tokens are pieces like others (T5, XGLM)."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    alphabet = sorted(set("".join(SENTENCES) + "<>/|_[]{}#*\\+=&%$@~^`\"'"))
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=SPECIAL, unk_token="<unk>", initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prepend_scheme)
    return tokenizer


def _word_piece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    alphabet = sorted(set("".join(SENTENCES).lower()))
    trainer = trainers.WordPieceTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = _around(tokenizer, "[CLS] $A [SEP]")
    return tokenizer


def _word_level():
    """Words between white space: a special token between two spaces is a word of the vocabulary."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.train_from_iterator(SENTENCES, trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False))
    return tokenizer


def _around(tokenizer, pattern):
    special = [(word, tokenizer.token_to_id(word)) for word in pattern.split() if word != "$A"]
    return processors.TemplateProcessing(single=pattern, special_tokens=special)


def _replace_spaces(*before):
    return normalizers.Sequence([*before, normalizers.Replace(" ", "▁")])


_KINDS = {
    "byte level": lambda: _byte_level(),
    "byte level, own space": lambda: _byte_level(prefix=True),
    "byte level, GPT-4's words": lambda: _byte_level(
        pre_tokenizers.Split(Regex(_GPT4), "isolated"), use_regex=False, ignore_merges=True
    ),
    "byte level, single digits": lambda: _byte_level(pre_tokenizers.Digits(individual_digits=True)),
    "SentencePiece BPE, own space by normalizer": lambda: _sentence_piece_bpe(
        _replace_spaces(normalizers.Prepend("▁")), None, True
    ),
    "SentencePiece BPE, own space first": lambda: _sentence_piece_bpe(
        None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False), True
    ),
    "SentencePiece BPE, own space always": lambda: _sentence_piece_bpe(
        None, pre_tokenizers.Metaspace(prepend_scheme="always", split=False), True
    ),
    "SentencePiece BPE, no own space": lambda: _sentence_piece_bpe(_replace_spaces(), None, False),
    "Unigram, own space first": lambda: _unigram("first"),
    "Unigram, own space always": lambda: _unigram("always"),
    "Unigram, no own space": lambda: _unigram("never"),
    "WordPiece": _word_piece,
    "WordLevel": _word_level,
}
KINDS = list(_KINDS)
LOSSLESS = [kind for kind in KINDS if not kind.startswith(("Word", "Unigram"))]
"""Those that give back every text, but for white space at its ends."""

CHATS = {
    "none": None,
    "marks in brackets": (
        "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}[ASK] {{ message.content | trim }} "
        "[/ASK]{% else %} {{ message.content }}{{ eos_token }}{% endif %}{% endfor %}"
    ),
    "lines": (
        "{% for message in messages %}<|turn|>{{ message.role }}\n{{ message.content }}<|over|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
    ),
    "two line breaks": (
        "{{ bos_token }}{% for message in messages %}<|turn|>{{ message.role }}<|turn|>\n\n"
        "{{ message.content | trim }}<|over|>{% endfor %}"
        "{% if add_generation_prompt %}<|turn|>assistant<|turn|>\n\n{% endif %}"
    ),
    "roles in words": (
        "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    ),
}


@lru_cache
def _trained(kind):
    return _KINDS[kind]().to_str()


def make_tokenizer(kind, begin=True):
    """A tokenizer of transformers, with the special tokens <|turn|> and <|over|> besides."""
    backend = Tokenizer.from_str(_trained(kind))
    names = ("[CLS]", "[SEP]", "[PAD]", "[UNK]") if kind == "WordPiece" else ("<s>", "</s>", "<pad>", "<unk>")
    if begin and kind != "WordPiece":
        backend.post_processor = _around(backend, "<s> $A")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **dict(zip(("bos_token", "eos_token", "pad_token", "unk_token"), names, strict=True)),
        clean_up_tokenization_spaces=False,
    )
    turn = AddedToken("<|turn|>", special=True, normalized=False)
    over = AddedToken("<|over|>", special=True, normalized=False, rstrip=True)
    tokenizer.add_tokens([turn, over], special_tokens=True)
    tokenizer.add_tokens([AddedToken("<note>", special=False, normalized=False)])
    return tokenizer

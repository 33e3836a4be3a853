"""Tokenizers of transformers as GGUF's, of which llama.cpp must make the same ids, or they are refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from gguf import GGUFWriter, TokenType
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from gitllm_plugin.errors import ConfigError

#: Names by which llama.cpp knows how a text is cut into words (``tokenizer.ggml.pre``).
_WORDS = (
    *("gpt-2", "smollm", "llama-bpe", "qwen2", "stablelm2", "tekken", "olmo", "starcoder", "deepseek-llm"),
    *("deepseek-coder", "falcon", "mpt", "refact", "command-r", "dbrx", "smaug-bpe", "poro-chat", "gpt-4o", "default"),
)

SAMPLES = (
    "what color is the shape?",
    "Answer the question about the image. is there a red circle? Answer:",
    "##Instruction: Describe it. ##Question: ##Answer:",
    "It's 1,234.56 or 20241129 of them; we've, I'LL, don't",
    "  two  spaces\n\nlines\tand\ttabs   end",
    "Ein Bär fährt über die Straße — «non», naïve café",
    "写真の中の猫は何色ですか?什么颜色",
    "какого цвета кошка? يا قطة שלום नमस्ते",
    "emoji 😀👩‍👩‍👧 and symbols ≤≠∑ x²",
    'if (a[i] != 0) { return b->c("d"); } // ok',
    "<s> </s> <pad> <|endoftext|> <|im_end|> [INST] <0x0A>",
    "e\u0301 decomposed, a\u00a0b, \u200bzero",
    "a",
)
"""Texts of many scripts and kinds, by which two tokenizers are compared."""


def candidates(tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, Callable[[GGUFWriter, int], None]]]:
    """Give ways in which llama.cpp may make the ids of a tokenizer, the likeliest first.

    Yields:
        A name, and what writes the tokenizer in that way; its second argument is the size of the vocabulary, that of
        the embeddings.

    Raises:
        ConfigError: the tokenizer is of a kind that GGUF has none for.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ConfigError(f"{type(tokenizer).__name__} has no tokenizer.json, of which GGUF's tokenizer is made")
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    model = content["model"]
    if model["type"] != "BPE":
        raise ConfigError(f"the tokenizer's model is {model['type']}; only BPE is exported to llama.cpp")
    if model.get("byte_fallback"):
        for space in (True, False):
            yield (
                f"llama, space in front {space}",
                lambda writer, size, s=space: _write_pieces(writer, tokenizer, size, s),
            )
        return
    for words in _WORDS:
        yield words, lambda writer, size, w=words: _write_pairs(writer, tokenizer, model, size, w)


def normalizer_of(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Tell which form of Unicode a tokenizer brings texts into; llama.cpp does not."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    found = json.loads(backend.to_str())["normalizer"] if backend is not None else None
    return found["type"] if found and found["type"] in ("NFC", "NFD", "NFKC", "NFKD") else None


def _write_pairs(
    writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, model: dict[str, Any], size: int, words: str
) -> None:
    """Write byte-level BPE."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(words)
    _write_vocabulary(writer, tokenizer, size)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    writer.add_token_merges(merges)


def _write_pieces(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, size: int, space: bool) -> None:
    """Write SentencePiece's BPE, whose merges go by the score of what they make: what comes first is made first."""
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    _write_vocabulary(writer, tokenizer, size)
    writer.add_token_scores([-float(number) for number in range(size)])
    writer.add_add_space_prefix(space)


def _write_vocabulary(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, size: int) -> None:
    tokens = [f"[PAD{number}]" for number in range(size)]
    kinds = [TokenType.UNUSED] * size
    for token, number in tokenizer.get_vocab().items():
        tokens[number], kinds[number] = token, TokenType.NORMAL
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            kinds[number] = TokenType.BYTE
    for number, token in tokenizer.added_tokens_decoder.items():
        is_special = token.special or token.content in tokenizer.all_special_tokens
        tokens[number], kinds[number] = token.content, TokenType.CONTROL if is_special else TokenType.USER_DEFINED
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is not None and kinds[unknown] is TokenType.NORMAL:
        kinds[unknown] = TokenType.UNKNOWN
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    special = {"bos": writer.add_bos_token_id, "eos": writer.add_eos_token_id, "pad": writer.add_pad_token_id}
    for name, add in special.items():
        if (number := getattr(tokenizer, f"{name}_token_id")) is not None:
            add(number)

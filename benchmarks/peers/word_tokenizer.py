"""A tokenizer of as many words as a vocabulary has ids, for programs that take text: ``t17`` is the token 17."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from benchmarks.peers.cases import FIRST_TEXT, IMAGE, PAD

IMAGE_WORD = "<image>"


def word_tokenizer(vocabulary: int) -> Any:
    """Make it; padding and the image's place have their ids of :mod:`benchmarks.peers.cases`."""
    special = {0: "<unk>", PAD: "<pad>", IMAGE: IMAGE_WORD, FIRST_TEXT - 1: "<end>"}
    words = {special.get(number, f"t{number}"): number for number in range(vocabulary)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<end>",
        additional_special_tokens=[IMAGE_WORD],
    )


def words(ids: Sequence[int]) -> str:
    """Give the text that is tokenized to ``ids``."""
    return " ".join(f"t{number}" for number in ids)

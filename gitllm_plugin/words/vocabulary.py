"""The words that image vectors are compared with: the language model's own token embeddings."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gitllm_plugin.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Vocabulary:
    """Tokens as text and as vectors of the width that image vectors have.

    Attributes:
        texts: V tokens, with the space in front of them where they have one.
        vectors: float32 ``[V, D]``, as the decoder's first layer reads them, without positions.
        num_left_out: tokens that are not in it: special ones, white space, control characters, and bytes that are
            no text.
    """

    texts: list[str]
    vectors: Tensor
    num_left_out: int

    @cached_property
    def words(self) -> list[str]:
        """The tokens without outer space, in lower case, so that ``" Dog"`` and ``"dog"`` are one word."""
        return [as_word(text) for text in self.texts]

    def of_words(self, words: Collection[str]) -> Vocabulary:
        """Find the tokens that are one of these words."""
        kept = [index for index, word in enumerate(self.words) if word in words]
        left_out = self.num_left_out + len(self.texts) - len(kept)
        return Vocabulary([self.texts[index] for index in kept], self.vectors[kept], left_out)

    @cached_property
    def directions(self) -> Tensor:
        """The vectors at length 1."""
        return F.normalize(self.vectors, dim=-1)


@torch.no_grad()
def read_vocabulary(language_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """Read the words of a language model.

    Where token embeddings are narrower than the decoder (OPT's ``project_in``), they are compared behind the layer
    that widens them: that is where image vectors enter.

    Raises:
        ConfigError: embeddings of another width than the decoder's, and no layer that widens them.
    """
    embedding = cast(nn.Module, language_model.get_input_embeddings())
    device = next(embedding.parameters()).device
    texts = {token_id: _text_of(token_id, tokenizer) for token_id in range(len(tokenizer))}
    kept = [token_id for token_id, text in texts.items() if text is not None]
    # Asked of the module, not read from its weight: some families scale what comes out.
    vectors = embedding(torch.tensor(kept, device=device))
    width = language_model.config.hidden_size
    if vectors.shape[-1] != width:
        vectors = _widening_layer(language_model, width)(vectors)
    return Vocabulary(
        texts=[cast(str, texts[token_id]) for token_id in kept],
        vectors=vectors.float().cpu(),
        num_left_out=len(texts) - len(kept),
    )


def as_word(text: str) -> str:
    """Give a token's text for comparison with other words."""
    return text.strip().lower()


def words_of(caption: str, tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Give the words of a caption, and the pieces that the tokenizer cuts them into, as far as they have a letter."""
    ids = tokenizer(f" {caption}", add_special_tokens=False)["input_ids"]
    pieces = [cast(str, tokenizer.decode([token_id])) for token_id in ids]
    return {word for word in map(as_word, [*caption.split(), *pieces]) if any(map(str.isalpha, word))}


def _text_of(token_id: int, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Give a token as it stands in a text, or None for one that is no word."""
    if token_id in tokenizer.all_special_ids:
        return None
    # SentencePiece drops the space in front of a first token, so it is not the first here.
    text = cast(str, tokenizer.decode([token_id]))
    word = text.strip()
    return text if word and word.isprintable() and "�" not in word else None


def _widening_layer(language_model: PreTrainedModel, width: int) -> nn.Module:
    for name, module in language_model.named_modules():
        if name.rpartition(".")[2] == "project_in":
            return module
    found = cast(Any, language_model.get_input_embeddings()).weight.shape[-1]
    raise ConfigError(
        f"token embeddings of {language_model.config.model_type!r} are {found} wide, the decoder is {width} wide, and "
        "it has no layer project_in: image vectors and words cannot be compared"
    )

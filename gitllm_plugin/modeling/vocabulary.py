"""Tokenizer and language model, compared when they meet: every id has an embedding, and there is an end."""

from __future__ import annotations

import json
import warnings
from typing import Any, cast

from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling.pretrained import listed

#: What a processor of another kind of input puts in the place of a picture or a sound, and texts never hold: Gemma 3's
#: tokenizer has one for its models that see, and the model of texts has no embedding for it.
_PLACEHOLDERS = ("image_token", "boi_token", "eoi_token", "audio_token", "video_token")


def fit_tokenizer(tokenizer: PreTrainedTokenizerBase, language_model: PreTrainedModel, source: str) -> None:
    """Compare a tokenizer with the model that reads its ids, and take from the model what it does not say itself.

    The tokenizer is changed in place in two cases: where it has no end token and the model's configurations name one,
    that is its end token; and where only special tokens that no text is given have no embedding, they are taken out,
    and the end token pads in the place of a padding token, because padding is never looked up.

    Args:
        tokenizer: the language model's.
        language_model: with its configuration and generation configuration.
        source: name or folder of both, for messages.

    Raises:
        ConfigError: tokens without an embedding, or no end token.
    """
    _find_end(tokenizer, language_model, source)
    _check_rows(tokenizer, _embeddings(language_model), source)
    _compare_with_config(tokenizer, language_model, source)


def end_tokens(language_model: PreTrainedModel) -> list[int]:
    """List the ids that the model's generation configuration and configuration end a text with, each once.

    What has no embedding is none: small models have the ends of their large ones in their configurations.
    """
    config = cast(Any, language_model.config).get_text_config()
    found: list[int] = []
    for settings in (getattr(language_model, "generation_config", None), config):
        ids = getattr(settings, "eos_token_id", None)
        found += [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
    return [number for number in dict.fromkeys(found) if number < _embeddings(language_model)]


def _embeddings(language_model: PreTrainedModel) -> int:
    # 4-bit weights have another shape than the embedding that they are; the module knows its size.
    module = cast(Any, language_model.get_input_embeddings())
    return getattr(module, "num_embeddings", None) or module.weight.shape[0]


def _find_end(tokenizer: PreTrainedTokenizerBase, language_model: PreTrainedModel, source: str) -> None:
    if tokenizer.eos_token_id is not None:
        return
    token_of = {number: token for token, number in tokenizer.get_vocab().items()}
    ends = end_tokens(language_model)
    known = [number for number in ends if number in token_of]
    if not known:
        named = f", and has none of the model's ({ends})" if ends else ", and the model's configurations name none"
        raise ConfigError(
            f"{source}: the tokenizer has no end token (eos_token){named}: answers would have no end. Name the "
            "one that the model was trained with as eos_token in tokenizer_config.json, or take its own tokenizer"
        )
    tokenizer.eos_token = token_of[known[0]]


def _check_rows(tokenizer: PreTrainedTokenizerBase, rows: int, source: str) -> None:
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}
    for name in _PLACEHOLDERS:
        beyond.pop(getattr(tokenizer, name, None) or "", None)
    if set(beyond) <= _never_read(tokenizer):
        pad = tokenizer.pad_token
        if pad in beyond:
            warnings.warn(
                f"{source}: the padding token {pad!r} (id {beyond[pad]}) has no embedding in a model of {rows}; texts "
                f"are padded with the end token {tokenizer.eos_token!r} instead: padding is not read",
                stacklevel=4,
            )
            tokenizer.pad_token = tokenizer.eos_token
        if tokenizer.unk_token in beyond:
            tokenizer.unk_token = None
        for token, number in beyond.items():
            _forget(tokenizer, token, number)
    else:
        tokens = [f"{token!r} (id {number})" for token, number in sorted(beyond.items(), key=lambda item: item[1])]
        raise ConfigError(
            f"{source}: the tokenizer has {len(tokenizer)} tokens, but the model has embeddings for {rows}; there is "
            f"none for {listed(tokens)}. Take the tokenizer that belongs to the model, or make the model larger and "
            "train it: model.resize_token_embeddings(len(tokenizer)) of transformers, then save both"
        )


def _never_read(tokenizer: PreTrainedTokenizerBase) -> set[str | None]:
    """Tell which special tokens no text is given: padding, and the one for unknown letters where there are none."""
    found = {tokenizer.pad_token}
    # Of bytes none is unknown, but transformers adds a token for it, as it does to every tokenizer of a Qwen 2.
    model = tokenizer.backend_tokenizer.model if tokenizer.is_fast else None
    if model is not None and getattr(model, "unk_token", "") is None:
        found.add(tokenizer.unk_token)
    return found - {tokenizer.eos_token, tokenizer.bos_token, tokenizer.cls_token, tokenizer.sep_token}


def _forget(tokenizer: PreTrainedTokenizerBase, token: str, number: int) -> None:
    """Take a token out of a tokenizer: a text that holds its letters would be given its id."""
    inner = cast(Any, tokenizer)
    if not tokenizer.is_fast:
        inner._added_tokens_decoder.pop(number, None)
        inner._added_tokens_encoder.pop(token, None)
        inner._update_trie()
        return
    content = json.loads(inner.backend_tokenizer.to_str())
    content["added_tokens"] = [added for added in content["added_tokens"] if added["id"] != number]
    words = content["model"].get("vocab")
    if isinstance(words, dict):
        words.pop(token, None)
    elif isinstance(words, list) and number == len(words) - 1:
        words.pop()
    inner._tokenizer = Tokenizer.from_str(json.dumps(content))


def _compare_with_config(tokenizer: PreTrainedTokenizerBase, language_model: PreTrainedModel, source: str) -> None:
    config = cast(Any, language_model.config).get_text_config()
    ends, begin = end_tokens(language_model), getattr(config, "bos_token_id", None)
    differing = []
    if ends and tokenizer.eos_token_id not in ends:
        differing.append(f"the end token is {tokenizer.eos_token_id} in the tokenizer and {ends} in the model")
    if begin is not None and tokenizer.bos_token_id is not None and begin != tokenizer.bos_token_id:
        differing.append(f"the first token (bos) is {tokenizer.bos_token_id} in the tokenizer and {begin} in the model")
    if differing:
        warnings.warn(
            f"{source}: {'; '.join(differing)}. Is the tokenizer the one that the model was trained with?", stacklevel=4
        )

"""A language model in llama.cpp under GIT's rule: image vectors see each other, text sees image and earlier text."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.llama_cpp.library import Batch, load_library


class LlamaCpp:
    """A language model in llama.cpp under GIT's rule; with ``context`` 0 its tokenizer alone."""

    def __init__(
        self, weights: Path, context: int, image_tokens: int = 0, threads: int = 1, exact: bool = True
    ) -> None:
        self._lib, self._model, self._context, self._image_end = load_library(), None, None, 0
        self._text: list[int] = []  # what is read behind the image
        settings = self._lib.llama_model_default_params()
        settings.vocab_only = context == 0
        self._model = self._lib.llama_model_load_from_file(os.fsencode(weights), settings)
        if not self._model:
            raise ConfigError(f"llama.cpp cannot load {weights}: it is damaged, or of a kind that this llama.cpp lacks")
        self._vocab = self._lib.llama_model_get_vocab(self._model)
        settings = self._lib.llama_context_default_params()
        settings.n_ctx = settings.n_batch = context
        settings.n_ubatch = min(context, max(512, image_tokens))  # an image is read at once: each patch sees all others
        settings.n_threads = settings.n_threads_batch = threads
        settings.swa_full = True  # or the image leaves the cache before the next question comes
        if exact:
            settings.type_k = settings.type_v = settings.flash_attn_type = 0  # float32
        self._context = self._lib.llama_init_from_model(self._model, settings) if context else None

    def __del__(self) -> None:
        for free, pointer in ((self._lib.llama_free, self._context), (self._lib.llama_model_free, self._model)):
            if pointer:
                free(pointer)

    def see(self, vectors: np.ndarray) -> None:
        """Begin anew with an image, float32 ``[P, D]``, whose patches see each other."""
        self._image_end = 0
        self.forget_text()
        vectors = np.ascontiguousarray(vectors, np.float32)
        self._lib.llama_set_causal_attn(self._context, False)
        none = (ctypes.c_int8 * len(vectors))()
        self._decode(len(vectors), embd=vectors.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), logits=none)
        self._lib.llama_set_causal_attn(self._context, True)
        self._image_end = len(vectors)

    def forget_text(self) -> None:
        """Keep the image alone."""
        self._keep_text(0)

    def _keep_text(self, count: int) -> None:
        del self._text[count:]
        self._lib.llama_memory_seq_rm(self._lib.llama_get_memory(self._context), 0, self._image_end + count, -1)

    def read(self, ids: Sequence[int], every: bool = False) -> np.ndarray:
        """Read tokens of the text; gives the logits behind the last, or behind each, float32 ``[n, vocabulary]``."""
        count = len(ids)
        wanted = {"logits": (ctypes.c_int8 * count)(*[1] * count)} if every else {}
        self._decode(count, token=(ctypes.c_int32 * count)(*ids), **wanted)
        self._text += ids
        shape = (count if every else 1, self._lib.llama_vocab_n_tokens(self._vocab))
        return np.ctypeslib.as_array(self._lib.llama_get_logits(self._context), shape).copy()

    def read_whole(self, ids: Sequence[int]) -> np.ndarray:
        """Read a text from its beginning, of which what was read last is not read again; gives the last logits."""
        pairs = zip(self._text, ids[:-1], strict=False)
        same = next((place for place, (old, new) in enumerate(pairs) if old != new), min(len(self._text), len(ids) - 1))
        self._keep_text(same)
        return self.read(ids[same:])[0]

    def ids(self, text: str) -> list[int]:
        """Encode a text, in which nothing is a special token."""
        given = text.encode("utf-8", "replace")
        room = (ctypes.c_int32 * (2 * len(given) + 8))()
        count = self._lib.llama_tokenize(self._vocab, given, len(given), room, len(room), False, False)
        return room[:count]

    def piece(self, token: int) -> bytes:
        """Decode a token; a special one is nothing."""
        room = ctypes.create_string_buffer(512)
        count = self._lib.llama_token_to_piece(self._vocab, token, room, len(room), 0, False)
        return room.raw[: max(0, count)]

    def _decode(self, count: int, **given: Any) -> None:
        # Positions go on behind what was read, and only the last logits are wanted, where a batch does not say.
        if status := self._lib.llama_decode(self._context, Batch(count, **given)):
            raise DataError(f"llama.cpp could not read {count} tokens more (its status {status})")

"""Weights in fewer bits, by llama.cpp's own functions and the mixtures that it makes by these names."""

from __future__ import annotations

from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.llama_cpp.library import load_library

_F32, _Q8, _Q6 = GGMLQuantizationType.F32, GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q6_K
_Q4, _Q5 = GGMLQuantizationType.Q4_K, GGMLQuantizationType.Q5_0
_FILE_TYPES = {
    None: LlamaFileType.ALL_F32,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q4_k_m": LlamaFileType.MOSTLY_Q4_K_M,
}
#: Where rows are no multiple of 256 long.
_FALLBACKS = {_Q4: _Q5, _Q6: _Q8}


class Quantizer:
    """Stores weights as a named mixture does.

    Args:
        config: of the language model.
        name: ``q8_0``, ``q4_k_m`` or None.

    Attributes:
        file_type: GGUF's number of the mixture.

    Raises:
        ConfigError: no such mixture.
    """

    def __init__(self, config: Any, name: str | None) -> None:
        if name not in _FILE_TYPES:
            raise ConfigError(f"quantize is {name!r}; it may be q8_0 or q4_k_m")
        self._name, self._layers, self._tied = name, config.num_hidden_layers, config.tie_word_embeddings
        self.file_type = _FILE_TYPES[name]

    def store(self, name: str, weight: np.ndarray) -> tuple[np.ndarray, GGMLQuantizationType]:
        """Give a weight, float32, as bytes of the kind in which the mixture has it; vectors stay float32."""
        kind = self._kind(name, weight)
        if kind is _F32:
            return np.ascontiguousarray(weight, np.float32), kind
        weight = np.ascontiguousarray(weight, np.float32)
        rows, columns = weight.shape
        block, size = GGML_QUANT_SIZES[kind]
        stored = np.zeros((rows, columns // block * size), np.uint8)
        load_library().ggml_quantize_chunk(kind.value, weight.ctypes.data, stored.ctypes.data, 0, rows, columns, None)
        return stored, kind

    def _kind(self, name: str, weight: np.ndarray) -> GGMLQuantizationType:
        # Norms of single heads are matrices that llama.cpp multiplies nothing with.
        if self._name is None or weight.ndim != 2 or "_norm" in name or weight.shape[1] % 32:
            return _F32
        if self._name == "q8_0":
            return _Q8
        kind = _Q6 if self._deserves_more(name) else _Q4
        return _FALLBACKS[kind] if weight.shape[1] % 256 else kind

    def _deserves_more(self, name: str) -> bool:
        if name == "output.weight" or (name == "token_embd.weight" and self._tied):
            return True
        parts = name.split(".")
        if len(parts) != 4 or parts[2] not in ("attn_v", "ffn_down"):
            return False
        layer, eighth = int(parts[1]), self._layers // 8
        return layer < eighth or layer >= 7 * self._layers // 8 or (layer - eighth) % 3 == 2

"""llama.cpp's functions, out of the library inside the package ``xllamacpp``, whose own interface knows text alone."""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, Structure, c_bool, c_char_p, c_float, c_int8, c_int32, c_size_t, c_uint32, c_void_p
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gitllm_plugin.errors import ConfigError

_TYPES = {"p": c_void_p, "i": c_int32, "u": c_uint32, "f": c_float, "b": c_bool, "s": c_size_t}
_LOG = ctypes.CFUNCTYPE(None, c_int32, c_char_p, c_void_p)


def _fields(declared: str) -> list[tuple[str, Any]]:
    groups = [group.split() for group in declared.split(";")]
    return [(name, _TYPES[kind]) for kind, *names in groups for name in names]


class ModelParams(Structure):
    """``struct llama_model_params`` of ``llama.h``."""

    _fields_ = _fields(
        "p devices tensor_buft_overrides; i n_gpu_layers split_mode load_mode lazy_mode main_gpu; p tensor_split "
        "progress_callback progress_callback_user_data kv_overrides; b vocab_only check_tensors use_extra_bufts "
        "no_host no_alloc load_mtp"
    )


class ContextParams(Structure):
    """``struct llama_context_params`` of ``llama.h``."""

    _fields_ = _fields(
        "u n_ctx n_batch n_ubatch n_seq_max n_rs_seq n_outputs_max n_outputs_max_per_seq; i n_threads n_threads_batch "
        "ctx_type rope_scaling_type pooling_type attention_type flash_attn_type; f rope_freq_base rope_freq_scale "
        "yarn_ext_factor yarn_attn_factor yarn_beta_fast yarn_beta_slow; u yarn_orig_ctx; f defrag_thold; p cb_eval "
        "cb_eval_user_data; i type_k type_v; s moe_cache_size; p abort_callback abort_callback_data; b embeddings "
        "offload_kqv no_perf op_offload swa_full kv_unified; p samplers; s n_samplers; p ctx_other"
    )


class Batch(Structure):
    """``struct llama_batch`` of ``llama.h``."""

    _fields_ = (
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", POINTER(c_float)),
        ("pos", c_void_p),
        ("n_seq_id", c_void_p),
        ("seq_id", c_void_p),
        ("logits", POINTER(c_int8)),
    )


#: Name -> what it gives, and what it takes.
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "llama_log_set": (None, [_LOG, c_void_p]),
    "llama_model_default_params": (ModelParams, []),
    "llama_model_load_from_file": (c_void_p, [c_char_p, ModelParams]),
    "llama_model_free": (None, [c_void_p]),
    "llama_model_get_vocab": (c_void_p, [c_void_p]),
    "llama_vocab_n_tokens": (c_int32, [c_void_p]),
    "llama_context_default_params": (ContextParams, []),
    "llama_init_from_model": (c_void_p, [c_void_p, ContextParams]),
    "llama_free": (None, [c_void_p]),
    "llama_set_causal_attn": (None, [c_void_p, c_bool]),
    "llama_decode": (c_int32, [c_void_p, Batch]),
    "llama_get_logits": (POINTER(c_float), [c_void_p]),
    "llama_get_memory": (c_void_p, [c_void_p]),
    "llama_memory_seq_rm": (c_bool, [c_void_p, c_int32, c_int32, c_int32]),
    "llama_tokenize": (c_int32, [c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool]),
    "llama_token_to_piece": (c_int32, [c_void_p, c_int32, c_char_p, c_int32, c_int32, c_bool]),
    "ggml_quantize_chunk": (c_size_t, [c_int32, c_void_p, c_void_p, c_size_t, c_size_t, c_size_t, c_void_p]),
}
_FLASH_ATTENTION, _FLOAT16 = -1, 1
_silent = _LOG(lambda level, text, data: None)


def load_library() -> Any:
    """Load llama.cpp, which says nothing on the terminal.

    Raises:
        ConfigError: ``xllamacpp`` is not installed, or is of a release with another interface.
    """
    package = find_spec("xllamacpp")
    if package is None or not package.submodule_search_locations:
        raise ConfigError("llama.cpp is not installed: pip install xllamacpp")
    file = next(Path(package.submodule_search_locations[0]).glob("xllamacpp*.so"), None)
    other = "this release of xllamacpp has another interface than is known here: pip install xllamacpp==2026.10.11549"
    if file is None:
        raise ConfigError(other)
    library = ctypes.CDLL(str(file))
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name, None)
        if function is None:
            raise ConfigError(f"{other} ({name} is missing)")
        function.restype, function.argtypes = result, arguments
    # Structures grow from release to release: where a field moved, the defaults are not what they are known to be.
    model, context = library.llama_model_default_params(), library.llama_context_default_params()
    known = (context.n_seq_max, context.flash_attn_type, context.type_k, context.type_v, context.yarn_beta_fast)
    right = known == (1, _FLASH_ATTENTION, _FLOAT16, _FLOAT16, context.yarn_beta_slow)
    if not right or model.vocab_only or context.ctx_other or context.n_samplers or not model.use_extra_bufts:
        raise ConfigError(other)
    library.llama_log_set(_silent, None)
    return library


def usual_threads() -> int:
    """Give as many threads as ``OMP_NUM_THREADS`` says, which torch keeps too, or as this process has processors."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    if said.isdigit() and int(said):
        return int(said)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

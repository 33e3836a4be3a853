"""Fused GPU kernels of the Liger project for a decoder's norms, rotary positions and gated feed-forward parts."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from transformers import PreTrainedModel

from gitllm_plugin.errors import ConfigError


def use_fused_kernels(language_model: PreTrainedModel) -> None:
    """Exchange a decoder's norms, rotary positions and gated activations for Liger's kernels, in place.

    The loss stays ours: its head runs on supervised tokens alone already. Liger also exchanges the functions and
    classes of the decoder's module, so other decoders of the family that this process makes later have them too.

    Raises:
        ConfigError: no CUDA, Liger is not installed, or it has no kernels for this type of decoder.
    """
    if not torch.cuda.is_available():
        raise ConfigError("fused_kernels needs a CUDA GPU, and torch finds none; leave it out")
    if find_spec("liger_kernel") is None:
        raise ConfigError("fused_kernels needs Liger's kernels: pip install liger-kernel")
    from liger_kernel.transformers.monkey_patch import (  # pyright: ignore[reportMissingImports]
        MODEL_TYPE_TO_APPLY_LIGER_FN,
        _apply_liger_kernel_to_instance,
    )

    model_type = language_model.config.model_type
    if model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise ConfigError(
            f"fused_kernels: Liger has none for a language model of type {model_type!r}; leave it out. It has them for "
            f"{', '.join(sorted(MODEL_TYPE_TO_APPLY_LIGER_FN))}"
        )
    _apply_liger_kernel_to_instance(model=language_model, cross_entropy=False, fused_linear_cross_entropy=False)

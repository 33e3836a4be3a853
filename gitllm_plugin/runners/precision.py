"""On what device and with what number format a run computes."""

import logging
from contextlib import AbstractContextManager
from typing import get_args

import torch
from torch import nn

from gitllm_plugin.common.device import default_device, has_fast_bf16
from gitllm_plugin.config.run import NO_FP16, Precision
from gitllm_plugin.errors import ConfigError

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS: tuple[str, ...] = get_args(Precision)


def resolve_device(name: str, local_rank: int | None = None) -> torch.device:
    """Find the device meant by ``run.device``.

    Args:
        name: ``auto`` (a GPU if there is one), ``cpu``, or ``cuda``, as ``cuda:1`` also with an index.
        local_rank: this process's number on its machine when several run, which then chooses the GPU.

    Raises:
        ConfigError: the name is not known, or is ``cuda`` where torch finds no GPU.
    """
    kind, _, index = name.partition(":")
    if kind not in DEVICES:
        raise ConfigError(f"run.device is {name!r}; it may be one of {', '.join(DEVICES)}")
    if kind == "auto":
        kind = default_device().type
    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("run.device is 'cuda' but torch finds no GPU; use run.device=cpu or auto")
    if local_rank is not None:
        return torch.device("cuda", local_rank)
    return torch.device("cuda", int(index or 0))


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """Find the number format meant by ``run.precision``: ``auto`` is bf16 where the hardware has it, else fp32.

    Returns:
        ``torch.float32``, ``torch.bfloat16`` or ``torch.float16``.

    Raises:
        ConfigError: the name is not known, or is ``fp16`` on a CPU.
    """
    if name not in PRECISIONS:
        raise ConfigError(f"run.precision is {name!r}; it may be one of {', '.join(PRECISIONS)}")
    if name == "fp16" and device.type == "cpu":
        raise ConfigError(f"run.precision=fp16 needs a GPU, and {NO_FP16}")
    fast = has_fast_bf16(device)
    if name == "bf16" and not fast:
        logging.warning(
            "run.precision is bf16, but this %s computes bf16 by emulation, which is slow; "
            "fp32 or auto is faster here.",
            device.type,
        )
    if name == "fp16":
        return torch.float16
    return torch.bfloat16 if name == "bf16" or (name == "auto" and fast) else torch.float32


def compute_in_float32(model: nn.Module) -> nn.Module:
    """Turn every floating parameter and buffer of ``model``, in place, into float32; in the log if any was not."""
    others = {str(p.dtype) for p in model.parameters() if p.is_floating_point() and p.dtype != torch.float32}
    if others:
        logging.info(
            "The run computes in float32: weights in %s become float32. Those rounded when they were loaded stay so; "
            "model.dtype=float32 loads them exactly.",
            ", ".join(sorted(others)),
        )
    return model.float()


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """Give a context in which matrix products run in ``dtype``; in fp32 it changes nothing."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def gradient_scaler(device: torch.device, dtype: torch.dtype) -> torch.amp.GradScaler:
    """Make a scaler that keeps gradients in float16's range; it changes nothing where none are computed in it."""
    # Lower than torch's default: what the loop propagates backward is a sum over tokens and not their mean.
    return torch.amp.GradScaler(device.type, init_scale=2.0**8, enabled=dtype == torch.float16)

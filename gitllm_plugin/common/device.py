"""Which device and which number format are fast here, and how much memory is free."""

import os
from pathlib import Path

import torch

from gitllm_plugin.errors import ConfigError

CPU_PRECISION = "GITLLM_CPU_PRECISION"
"""Environment variable that says what CPUs are fast in, ``fp32`` or ``bf16``, in the place of what torch finds.

With it, one machine makes another one's choice wherever a setting is ``auto``, in child processes too.
"""


def has_fast_bf16(device: torch.device) -> bool:
    """Say whether ``device`` multiplies bfloat16 matrices in hardware; emulation on a CPU is many times slower.

    Args:
        device: a CPU or GPU; of a CPU, :data:`CPU_PRECISION` has the first word.

    Raises:
        ConfigError: the environment variable holds something else than its two values.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if said := os.environ.get(CPU_PRECISION):
        if said not in ("fp32", "bf16"):
            raise ConfigError(f"the environment variable {CPU_PRECISION} is {said!r}; it may be fp32, bf16 or unset")
        return said == "bf16"
    # Older releases of torch do not tell.
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def default_device() -> torch.device:
    """Find a GPU, or else give the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def free_memory() -> int | None:
    """Count the bytes of memory that are free, the GPU's where there is one; None where the system does not tell."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)

"""Numbers of bytes as people write them."""

import re

from gitllm_plugin.errors import ConfigError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def parse_size(text: str) -> int:
    """``512MB`` (millions of bytes), ``512MiB`` (2**20), or a plain number of bytes.

    Raises:
        ConfigError: if it is neither, or not above zero.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]I?)?B?\s*", text.upper())
    size = int(float(match[1]) * _UNITS[match[2] or ""]) if match else 0
    if size <= 0:
        raise ConfigError(f"the size is {text!r}, expected a number with a unit such as 512MB, 1GB or 256MiB")
    return size


def format_size(size: float) -> str:
    """A number of bytes in the unit that suits it: ``8.8 GB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"

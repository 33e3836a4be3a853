"""Repair: torchvision's binary wheel does not load beside a torch build of another kind.

PyPI's torchvision is built for CUDA; beside a CPU-only torch its C++ library cannot be loaded, and
``import torchvision`` fails with "operator torchvision::nms does not exist", because it attaches Python code
to operators that only the library declares. LAVIS, timm, peft and transformers use torchvision's Python
parts alone, so declaring those operators is enough.
"""

import importlib
import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from gitllm_plugin.errors import HostError

# Operators with a fixed, documented signature; others that a later torchvision attaches code to get an
# open one.
_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_ATTACHED = re.compile(r"""register_fake\(\s*["']torchvision::(\w+)["']""")
_MISSING = re.compile(r"operator torchvision::\w+ does not exist")


class TorchvisionWarning(RuntimeWarning):
    """torchvision works in part."""


def warn(fault: str) -> None:
    """Give a warning of Python's, without a line of source: none of the user's is to blame."""
    warnings.warn_explicit(fault, TorchvisionWarning, "<torchvision>", 0)


def note(fault: str) -> None:
    """Give a line on the first rank."""
    if os.environ.get("RANK", "0") == "0":
        print(f"note: {fault}", file=sys.stderr)


# What is wrong with torchvision here; None where nothing is, or where it was not looked at.
fault: str | None = None

# How that is said when it is found: a library warns, the `gitllm` command notes.
announce: Callable[[str], None] = warn

# torch.library drops the declarations of a Library object that is garbage collected.
_libraries: list = []


def repair_torchvision() -> bool:
    """Import torchvision, declaring the operators that its C++ library should have declared.

    Where torchvision loads by itself nothing is changed.

    Returns:
        True if operators had to be declared (a ``TorchvisionWarning`` says so by default), False if nothing was wrong.

    Raises:
        HostError: torchvision is not installed.
    """
    global fault
    if "torchvision" in sys.modules:
        return bool(_libraries)
    folder = _package_folder()
    if folder is None:
        raise HostError("torchvision is not installed, and LAVIS needs it: pip install torchvision")
    try:
        importlib.import_module("torchvision")
        return False
    except RuntimeError as error:
        if not _MISSING.search(str(error)):
            raise
    _forget_partial_import()
    names = _attached_operators(folder)
    _declare(names)
    importlib.import_module("torchvision")
    fault = (
        f"torchvision is of another build than torch: its operators ({', '.join(names)}), which GIT-LLM does not use, "
        "do not work"
    )
    announce(fault)
    return True


def _package_folder() -> Path | None:
    spec = importlib.util.find_spec("torchvision")
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _forget_partial_import() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]


def _attached_operators(folder: Path) -> list[str]:
    """Names of the operators that torchvision's Python code attaches to whether or not they exist."""
    source = (folder / "_meta_registrations.py").read_text(encoding="utf-8")
    return sorted(set(_ATTACHED.findall(source)))


def _declare(names: list[str]) -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    _libraries.append(library)
    for name in names:
        library.define(_SCHEMAS.get(name, f"{name}(...) -> ..."))
        for backend in ("CPU", "CUDA"):
            library.impl(name, _refusal(name), backend)


def _refusal(name: str):
    def refuse(*args, **kwargs):
        raise RuntimeError(
            f"torchvision::{name} was called, but torchvision's C++ library does not load beside this torch "
            "build. Install a torchvision of the same build as torch (same download index)."
        )

    return refuse

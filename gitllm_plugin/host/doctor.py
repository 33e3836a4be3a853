"""Look at this machine and say what a GIT-LLM run has, lacks, and which command helps."""

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys

from gitllm_plugin import __version__
from gitllm_plugin.errors import ConfigError, HostError
from gitllm_plugin.host import import_hook, placeholders, torchvision_repair
from gitllm_plugin.host.locate import INSTALL_COMMAND, REQUIREMENTS, locate

# What further uses of this package need: module -> (what for, what installs it).
EXTRAS = {
    "gguf": ("the demonstration", 'pip install "gitllm-plugin[demo]"'),
    "gradio": ("the web page, gitllm demo", 'pip install "gitllm-plugin[web]"'),
    "bitsandbytes": ("load_in_4bit, on a GPU", 'pip install "gitllm-plugin[gpu]"'),
}
JAVA = ("captions scored by LAVIS's own tasks (METEOR, SPICE)", "apt-get install default-jre-headless")

# What this package itself needs beyond LAVIS's own requirements: module -> what to give pip.
OWN_REQUIREMENTS = {"peft": "peft", "rouge_score": "rouge-score", "safetensors": "safetensors"}


@dataclasses.dataclass
class Report:
    """What `examine` found, ready to be printed.

    Attributes:
        facts: (what, value), in the order to show them.
        absent: Packages that LAVIS imports and a GIT-LLM run does not need -> the command that installs each.
        extras: What is absent and only some uses need -> (what for, the command that installs it).
        notes: Warnings about this machine that do not prevent a run.
        problems: (what is wrong, the command or action that mends it); empty if GIT-LLM can run.
    """

    facts: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    absent: dict[str, str] = dataclasses.field(default_factory=dict)
    extras: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    problems: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing that is required is missing."""
        return not self.problems


def examine() -> Report:
    """Examine Python, libraries, LAVIS, devices and the hook. Nothing is installed or changed on disk."""
    report = Report()
    report.facts.append(("gitllm_plugin", __version__))
    report.facts.append(("python", f"{platform.python_version()} ({sys.executable})"))
    _examine_requirements(report)
    _examine_host(report)
    if importlib.util.find_spec("torch") is not None:
        _examine_devices(report)
    if report.ok:
        _examine_registration(report)
    if report.ok:
        _examine_precision(report)
    _examine_extras(report)
    _examine_hook(report)
    return report


def _examine_requirements(report: Report) -> None:
    for module, package in {**REQUIREMENTS, **OWN_REQUIREMENTS}.items():
        if importlib.util.find_spec(module) is None:
            report.problems.append((f"'{module}' is not installed", f"pip install {package}"))
        else:
            report.facts.append((package, _version(package)))
    for module, package in placeholders.RELEASE_PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            report.absent[module] = f"pip install {package}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "installed, version unknown"


def _examine_host(report: Report) -> None:
    try:
        host = locate()
    except HostError as error:
        report.problems.append((str(error).splitlines()[0], INSTALL_COMMAND))
        return
    report.facts.append(("LAVIS", f"{host.variant}, {host.folder}"))


def _examine_devices(report: Report) -> None:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        report.facts.append(("GPU", f"{', '.join(names)} (CUDA {torch.version.cuda})"))
    else:
        report.facts.append(("GPU", "none that torch can use"))
    report.facts.append(("CPU threads", str(torch.get_num_threads())))


def _examine_extras(report: Report) -> None:
    for module, use in EXTRAS.items():
        if importlib.util.find_spec(module) is None:
            report.extras[module] = use
    java = shutil.which("java")
    if java is None:
        report.extras["java"] = JAVA
        return
    said = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60).stderr.splitlines()
    report.facts.append(("Java", f"{said[0] if said else 'version unknown'} ({java})"))


def _examine_precision(report: Report) -> None:
    """What a run with `precision: auto` decides by. Imports transformers, so everything required must be there."""
    import torch

    from gitllm_plugin.common.device import CPU_PRECISION, has_fast_bf16

    try:
        fast = has_fast_bf16(torch.device("cpu"))
    except ConfigError as error:
        report.problems.append((str(error), f"unset {CPU_PRECISION}"))
        return
    meaning = "fast, precision auto uses it" if fast else "not known to be fast, precision auto computes in fp32"
    if CPU_PRECISION in os.environ:
        meaning += f" ({CPU_PRECISION} says so)"
    report.facts.append(("bf16 on CPU", meaning))


def _examine_registration(report: Report) -> None:
    """Do what every run does first; its failure is the machine's real problem."""
    import gitllm_plugin

    said_before, torchvision_repair.announce = torchvision_repair.announce, lambda fault: None  # reported below
    try:
        gitllm_plugin.register()
    except Exception as error:  # noqa: BLE001 - whatever it is, the report is the place to say it
        what = f"registering with LAVIS fails: {type(error).__name__}: {error}"
        report.problems.append((what, "python -c 'import gitllm_plugin; gitllm_plugin.register()' shows where"))
        return
    finally:
        torchvision_repair.announce = said_before
    report.facts.append(("registered with LAVIS", "yes"))
    if torchvision_repair.fault is not None:
        report.notes.append(
            f"{torchvision_repair.fault}. A torchvision of torch's own build (same download index) helps"
        )
    for module, reason in placeholders.standing_in.items():
        if reason != "not installed":
            report.absent[module] = f"pip install --upgrade {placeholders.PACKAGES[module]}  ({reason})"


def _examine_hook(report: Report) -> None:
    hook = import_hook.status()
    state = f"installed ({hook.path})" if hook.installed else "not installed (gitllm hook install)"
    off = f", switched off by {import_hook.KILL_SWITCH}=0" if hook.switched_off else ""
    report.facts.append(("import hook", state + off))

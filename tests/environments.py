"""Install this checkout into fresh environments and use it there: ``python -m tests.environments NAME ...``.

Each environment has a Python and the oldest or the newest versions that ``setup.py`` allows. What is tried: a model is
asked without LAVIS, by Python and by the command; then LAVIS is installed, a tiny model trained, and the run asked.
A row is written for each into benchmarks/results/environments.json, of which ``python docs/_build/results.py`` makes
the table of docs/install.md, and its folder removed. Give no names for a list of them.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results" / "environments.json"
LAVIS = "salesforce-lavis==1.0.2"
OLDEST = {
    "torch": "2.13.0",
    "torchvision": "0.28.0",
    "transformers": "5.20.0",
    "peft": "0.18.0",
    "timm": "1.0.9",
    "omegaconf": "2.3.0",
    "pydantic": "2.12.0",
    "webdataset": "0.2.111",
}
"""The bounds of ``setup.py``; a test compares them."""

SHOWN = ("torch", "transformers", "peft", "timm", "numpy")

WITHOUT_LAVIS = """
import importlib.util, sys
from PIL import Image
assert importlib.util.find_spec("lavis") is None
from gitllm_plugin.modeling import build_git_llm, save_folder
from gitllm_plugin.processors.image_transform import NORMALIZATIONS, ImageTransform
model, tokenizer = build_git_llm("tiny:llama", "tiny:clip", trainable="proj+lora", dtype="float32", lora={"rank": 4})
processor = ImageTransform(32, *NORMALIZATIONS["clip"]).as_preprocessor_config()
save_folder(model, "folder", tokenizer=tokenizer, image_processor=processor, settings={})
Image.new("RGB", (40, 30), "teal").save("teal.png")
Image.new("RGB", (30, 40), "gold").save("gold.png")
from gitllm_plugin import Pipeline
assert isinstance(Pipeline.from_pretrained("folder").answer("teal.png", "what color is it?"), str)
assert "lavis" not in sys.modules and "omegaconf" not in sys.modules
"""
TABLE = "image,question,answer,split\n" + "".join(
    f"{color}.png,what color is it?,{color},{split}\n" for color, split in (("teal", "train"), ("gold", "val"))
)


@dataclass
class Environment:
    """One to be made.

    Attributes:
        python: version of the interpreter, found as ``python3.x``.
        versions: of packages, exactly; what is not named is the newest.
    """

    python: str
    versions: dict[str, str] = field(default_factory=dict)


ENVIRONMENTS = {
    "3.10-oldest": Environment("3.10", OLDEST),
    "3.10-newest": Environment("3.10"),
    "3.11-oldest": Environment("3.11", OLDEST),
    "3.11-newest": Environment("3.11"),
    "3.12-newest": Environment("3.12"),
    "3.13-oldest": Environment("3.13", OLDEST),
    "3.13-newest": Environment("3.13"),
    # Nothing but the newest torch is other than in the one above: pip is asked for no CUDA where there is a CPU build.
    "3.11-cpu": Environment("3.11", {"torch": "2.13.0"}),
}


class FailedError(Exception):
    """A command did not do what it should; the text is the end of what it said."""


def try_out(environment: Environment, interpreter: str, wheel: Path) -> dict[str, str]:
    """Make an environment, use the package in it, and remove it; gives a row of the table."""
    with tempfile.TemporaryDirectory(prefix="gitllm-environment-") as name:
        folder = Path(name)
        _run([interpreter, "-m", "venv", str(folder / "venv")])
        python = str(folder / "venv" / "bin" / "python")
        pip = [python, "-m", "pip", "install", "--quiet", "--no-cache-dir"]
        pinned = [f"{package}=={version}" for package, version in environment.versions.items()]
        # First, so that no other version of what is large is fetched.
        _run([*pip, *pinned, str(wheel)])
        plain = _size(folder / "venv")
        _run([python, "-c", WITHOUT_LAVIS], folder)
        gitllm = [str(folder / "venv" / "bin" / "gitllm")]
        asked = _run([*gitllm, "ask", "teal.png", "what color is it?", "--model", "folder"], folder)
        _run([*pip, f"{wheel}[host]"])
        _run([*pip, "--no-deps", LAVIS])
        _run([*gitllm, "doctor"], folder)
        (folder / "mine.csv").write_text(TABLE)
        models = ["--language-model", "tiny:llama", "--image-encoder", "tiny:clip", "--options", "run.max_iters=2"]
        trained = _run([*gitllm, "train", "--data", "mine.csv", *models, "run.device=cpu"], folder)
        _run([*gitllm, "ask", "teal.png", "what color is it?", "--model", "output/mine/runs/latest"], folder)
        listed = json.loads(_run([python, "-m", "pip", "list", "--format", "json"])[0])
        versions = {package["name"].lower(): package["version"] for package in listed}
        version = versions["torch"]
        return {
            "Python": _run([python, "--version"])[0].split()[-1],
            **{package: versions[package] for package in SHOWN},
            "torch": f"{version.removesuffix('+cpu')}, {'for CPUs' if version.endswith('+cpu') else 'CUDA'}",
            "disk": f"{plain / 1e9:.1f} GB",
            "with LAVIS": f"{_size(folder / 'venv') / 1e9:.1f} GB",
            "memory, asking": f"{asked[1] / 1e6:.0f} MB",
            "training": f"{trained[1] / 1e6:.0f} MB",
        }


def _run(command: list[str], folder: Path | None = None) -> tuple[str, int]:
    """Run a command away from the checkout; gives what it printed, and its most memory in bytes."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode:
            said = (out.read() + err.read()).decode(errors="replace").strip()
            raise FailedError(f"{' '.join(command)[:200]}\n{said[-2000:]}")
        return out.read().decode(), usage.ru_maxrss * 1024


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def keep(row: dict[str, str], path: Path = RESULTS) -> None:
    """Write a row into the results' file, in the place of an earlier one, in the order of the list."""
    found = json.loads(path.read_text(encoding="utf-8"))
    rows = {each[0]: each for each in found["rows"]} | {row["environment"]: list(row.values())}
    found["header"], found["rows"] = list(row), [rows[name] for name in ENVIRONMENTS if name in rows]
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> int:
    """Try the environments that are named; 1 where one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ENVIRONMENTS)}")
    parser.add_argument("--python", nargs="+", default=[], metavar="PATH", help="interpreters that are not on the path")
    args = parser.parse_args()
    if not args.names:
        parser.print_help()
        return 0
    if unknown := sorted(set(args.names) - set(ENVIRONMENTS)):
        parser.error(f"unknown: {', '.join(unknown)}")
    interpreters = {_run([path, "--version"])[0].split()[-1].rpartition(".")[0]: path for path in args.python}
    failed = []
    with tempfile.TemporaryDirectory(prefix="gitllm-wheel-") as name:
        _run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", name, str(REPOSITORY)])
        (wheel,) = Path(name).glob("*.whl")
        for each in args.names:
            wanted = ENVIRONMENTS[each]
            interpreter = interpreters.get(wanted.python) or shutil.which(f"python{wanted.python}")
            if interpreter is None:
                print(f"{each}: not tried, there is no python{wanted.python} here", file=sys.stderr)
                continue
            try:
                row = {"environment": each, **try_out(wanted, interpreter, wheel)}
                print(json.dumps(row), flush=True)
                keep(row)
            except FailedError as error:
                failed.append(each)
                print(f"{each}: FAILED: {error}", file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

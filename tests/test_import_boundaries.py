"""What each part of the package may import, seen in fresh processes.

Static rules (import-linter) see import statements; here it is seen what is loaded in the end.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# Modules below a package, imported one by one; then the names of all that was loaded.
LOAD = """
import importlib, json, pkgutil, sys, warnings
warnings.simplefilter("ignore")
{first}
package = importlib.import_module({package!r})
for module in pkgutil.walk_packages(package.__path__ if {whole} else [], {package!r} + "."):
    importlib.import_module(module.name)
print(json.dumps(sorted(sys.modules)))
"""


def loaded_by(package: str, whole: bool = True, path: Path = REPOSITORY, first: str = "") -> list[str]:
    """Names in `sys.modules` of a fresh Python that imported `package`, with all its modules if `whole`."""
    finished = subprocess.run(
        [sys.executable, "-c", LOAD.format(package=package, whole=whole, first=first)],
        env={**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


def within(loaded: list[str], forbidden: tuple[str, ...]) -> list[str]:
    """Those of the loaded modules that are one of `forbidden` or below one."""
    return [name for name in loaded if any(name == root or name.startswith(root + ".") for root in forbidden)]


HOST = ("lavis", "omegaconf")
# peft and transformers import torchvision, which does not load beside a CPU-only torch before it is repaired.
REPAIR = "from gitllm_plugin.host.torchvision_repair import repair_torchvision; repair_torchvision()"
ADAPTERS = tuple(f"gitllm_plugin.{part}" for part in ("models", "processors", "datasets", "tasks", "runners", "cli"))


@pytest.mark.parametrize("package", ["gitllm_plugin", "gitllm_plugin.host.autoload"])
def test_importing_the_package_is_cheap(package):
    loaded = loaded_by(package, whole=False)
    assert within(loaded, ("torch", "transformers", "numpy", "yaml", *HOST)) == []


def test_the_command_line_imports_no_heavy_library():
    assert within(loaded_by("gitllm_plugin.cli"), ("torch", "transformers", "numpy", *HOST)) == []


def test_a_wrong_path_is_told_before_torch_is_imported(tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    (tmp_path / "cat.png").write_bytes((REPOSITORY / "docs" / "images" / "page.png").read_bytes())
    commands = {
        "cat.jpg: cannot be read": ["words", "cat.jpg", "--model", "used"],
        "no such file: ": ["words", "--images", "nowhere", "--model", "used"],
        "holds no picture": ["words", "--images", "used", "--model", "used"],
        "there is no model nowhere": ["words", "cat.png", "--model", "nowhere"],
        "there is no model absent": ["demo", "--model", "absent"],
        "nowhere is not a run": ["export", "nowhere", "new"],
        "used exists already": ["export", "run", "used"],
        "used exists already; ": ["merge", "model", "used"],
        "used exists already; name": ["convert-checkpoint", "model", "used"],
    }
    script = "import sys; from gitllm_plugin.cli.main import main\n"
    script += f"print([main(command) for command in {list(commands.values())}], 'torch' in sys.modules)"
    finished = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert finished.stdout == f"{[2] * len(commands)} False\n", finished.stderr
    for line, message in zip(finished.stderr.split("error: ")[1:], commands, strict=True):
        assert message in line


@pytest.mark.parametrize(
    ("layer", "others"),
    [("modeling", ("m3it", "metrics")), ("m3it", ("modeling", "metrics")), ("metrics", ("modeling", "m3it"))],
)
def test_layers_below_lavis_import_neither_it_nor_each_other(layer, others):
    loaded = loaded_by(f"gitllm_plugin.{layer}", first=REPAIR if layer == "modeling" else "")
    assert f"gitllm_plugin.{layer}" in loaded
    assert within(loaded, (*HOST, *ADAPTERS, *(f"gitllm_plugin.{other}" for other in others))) == []


def test_a_trained_model_is_used_without_lavis():
    loaded = loaded_by("gitllm_plugin.web", first=REPAIR)  # it uses `inference` and `words`
    assert {"gitllm_plugin.inference.pipeline", "gitllm_plugin.words.nearest"} <= set(loaded)
    assert within(loaded, HOST) == []


def test_these_tests_can_fail(tmp_path):
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted" / "__init__.py").touch()
    (tmp_path / "planted" / "module.py").write_text("def late():\n    pass\nimport omegaconf\n")
    assert "omegaconf" in within(loaded_by("planted", path=tmp_path), HOST)
    assert within(loaded_by("planted", whole=False, path=tmp_path), HOST) == []

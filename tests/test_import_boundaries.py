"""What each room of the package may import, and how large and how private its files are.

Static rules (import-linter) see import statements; what is loaded in the end is seen in fresh processes.
"""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grimp
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
REPAIR = "from gitllm_plugin.common.torchvision_repair import repair_torchvision; repair_torchvision()"
ADAPTERS = tuple(f"gitllm_plugin.{part}" for part in ("models", "processors", "datasets", "tasks", "runners", "cli"))


@pytest.mark.parametrize("package", ["gitllm_plugin", "gitllm_plugin.host.autoload"])
def test_importing_the_package_is_cheap(package):
    loaded = loaded_by(package, whole=False)
    assert within(loaded, ("torch", "transformers", "numpy", "yaml", *HOST)) == []


def test_the_command_line_imports_no_heavy_library():
    assert within(loaded_by("gitllm_plugin.cli"), ("torch", "transformers", "numpy", *HOST)) == []


SLOW = ("pandas", "peft", "timm", "sklearn", "matplotlib", "nltk", "datasets", "pyarrow")


def test_importing_the_model_imports_nothing_slow_that_it_does_without():
    assert within(loaded_by("gitllm_plugin.modeling", whole=False), SLOW) == []


def test_the_host_imports_no_table_library_before_it_reads_a_table():
    loaded = loaded_by("lavis.common", whole=False, first="import gitllm_plugin; gitllm_plugin.register()")
    assert within(loaded, ("gitllm_plugin.models", "lavis.common.utils"))
    assert within(loaded, ("pandas", "sklearn", "matplotlib", "nltk")) == []


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


MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_FUNCTION = 400, 60
PACKAGE = REPOSITORY / "gitllm_plugin"
SOURCES = {path: path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {path: ast.parse(source) for path, source in SOURCES.items()}


def circles(arrows: dict[str, set[str]]) -> list[tuple[str, ...]]:
    """Names that import each other, in whatever number of steps."""

    def reached(name: str) -> set[str]:
        found, ahead = set(), [*arrows[name]]
        while ahead:
            if (other := ahead.pop()) not in found:
                found.add(other)
                ahead += arrows[other]
        return found

    beyond = {name: reached(name) for name in arrows}
    return sorted({tuple(sorted(b for b in beyond[a] if a in beyond[b])) for a in arrows if a in beyond[a]})


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def used_private_names() -> Iterator[str]:
    """Private names of one file of the package that another imports or calls, but for a class's own by inheritance."""
    defined = {
        path: {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        for path, tree in TREES.items()
    }
    for path, tree in TREES.items():
        elsewhere = set().union(*(names for other, names in defined.items() if other != path)) - defined[path]
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        ours = [node for node in imports if (node.module or "").startswith("gitllm_plugin")]
        others = {
            "self",
            "cls",
            *(name.asname or name.name for node in imports if node not in ours for name in node.names),
        }
        found = [name.name for node in ours for name in node.names if private(name.name)]
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and private(node.attr) and node.attr in elsewhere:
                found += [ast.unparse(node)] if getattr(node.value, "id", None) not in others else []
        yield from (f"{path.relative_to(PACKAGE)}: {name}" for name in found)


@pytest.fixture(scope="module")
def imports():
    """Module -> those modules of the package that it imports, anywhere in its code."""
    graph = grimp.build_graph("gitllm_plugin", cache_dir=None)
    return {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}


def test_no_modules_import_each_other(imports):
    assert circles(imports) == []


def test_no_rooms_import_each_other(imports):
    """The package itself is left out: `register` calls the host, which asks the package for its version."""

    def room(module: str) -> str:
        return ".".join(module.split(".")[:2])

    arrows: dict[str, set[str]] = {room(module): set() for module in imports}
    for module, imported in imports.items():
        arrows[room(module)] |= {room(other) for other in imported} - {room(module), "gitllm_plugin"}
    assert circles(arrows) == []


def test_no_file_is_too_long():
    lengths = {str(path.relative_to(PACKAGE)): len(source.splitlines()) for path, source in SOURCES.items()}
    assert {name: n for name, n in lengths.items() if n > MOST_LINES_OF_A_FILE} == {}


def test_no_function_is_too_long():
    lengths = {
        f"{path.relative_to(PACKAGE)}: {node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    assert {name: n for name, n in lengths.items() if n > MOST_LINES_OF_A_FUNCTION} == {}


def test_no_private_name_is_used_by_another_file():
    assert sorted(used_private_names()) == []


def test_circles_are_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == [("b", "c")]

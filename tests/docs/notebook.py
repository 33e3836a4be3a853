"""A notebook's code without Jupyter: `python -m tests.docs.notebook FILE` runs it and writes what it prints into it."""

import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path


def run_cells(path: Path, folder: Path) -> list[str]:
    """Run a notebook's code cells one after another in ``folder``, and give what each prints."""
    namespace: dict = {"__name__": "__main__"}
    printed = []
    before = Path.cwd()
    os.chdir(folder)
    try:
        for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
            if cell["cell_type"] == "code":
                out = io.StringIO()
                with contextlib.redirect_stdout(out):
                    exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), namespace)  # noqa: S102
                printed.append(out.getvalue())
    finally:
        os.chdir(before)
    return printed


def main(path: Path) -> None:
    """Run, and write the outputs."""
    with tempfile.TemporaryDirectory() as folder:
        printed = run_cells(path, Path(folder))
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, (cell, text) in enumerate(zip(cells, printed, strict=True), 1):
        cell["execution_count"] = number
        output = {"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)}
        cell["outputs"] = [output] if text else []
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
